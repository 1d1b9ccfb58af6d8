"""A page in a real browser, with what a reader would do appended as a script."""

import shutil
import subprocess
from pathlib import Path

BROWSER = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def opened(page: str, act: str, folder: Path) -> str:
    """The document after `act` has run at its end, without an error or a word on the console."""
    file = folder / "page.html"
    file.write_text(page.replace("</body>", act))
    done = subprocess.run(
        [
            str(BROWSER),
            *FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert 'data-ready="yes"' in done.stdout
    assert "data-error" not in done.stdout.split(">", 2)[1]
    return done.stdout
