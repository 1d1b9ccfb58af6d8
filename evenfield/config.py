"""The configuration of a run: one frozen tree, saved resolved beside every run. No torch here.

A default stands once, here. `to_dict` and `from_dict` go to JSON and back; an unknown key is an
error that lists the known ones.
"""

from __future__ import annotations

import json
import types
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from evenfield.errors import InputError
from evenfield.records import digest

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Crops:
    """The crops that self-supervised methods compare (`--view.crops.*`); others take none.

    Attributes:
        global_side: Side in pixels of the two global crops as the network sees them; none = the
            view's `crop`, or the side of the image.
        local_side: Side in pixels of the local crops; none = half of the global ones.
        num_local: Local crops of an item; of a pair, half of them from each image.
        resize: Whether a crop is a random part of the image brought to its side; otherwise a random
            window of that side, never resized.
        global_scale: Least and largest share of the image's area in a resized global crop; draws
            that do not fit into the image are drawn again (ten times, then the whole image).
        local_scale: The same of local crops.
        within: Side in pixels of the central region that crops are taken from; none = the image.
        shift: Standard deviation of a random gain (around 1) and offset of each crop and channel,
            on pixels in 0 to 1 before they are normalised; 0 = off.
        shift_p: Share of crops that are shifted.
        brightness: Standard deviation of a random offset and exponent (around 1) of half of the
            channels of the global crops, on pixels in 0 to 1, clipped; 0 = off.
    """

    global_side: int | None = None
    local_side: int | None = None
    num_local: int = 6
    resize: bool = True
    global_scale: tuple[float, float] = (0.9, 1.1)
    local_scale: tuple[float, float] = (0.3, 0.5)
    within: int | None = None
    shift: float = 0.0
    shift_p: float = 0.5
    brightness: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the network sees of an image.

    Attributes:
        normalise: Whose intensity statistics centre and scale the pixels: of each `image`, of its
            `plate`, of its plate's `controls`, or of the training `dataset` (one mean and standard
            deviation a channel, from training images of perturbed wells); or `unit`: none, only
            the range of the pixel type is mapped to 0 to 1 (what `contrimix` works on).
        crop: Side of the crop in pixels (random in training, central otherwise); none = whole.
        flips: Random mirroring in training.
        rotations: Random right-angle rotations in training.
        jitter: Standard deviation of the random log-gain and offset of each image and channel in
            training (in units of the normalised image); 0 = off.
        colour: Strength of the colour jitter in training, on pixels in 0 to 1: brightness and
            contrast of each channel (and saturation of 3 channels) times 1 - s to 1 + s; 0 = off.
        hed: Strength of the stain jitter in training: amounts of hematoxylin, eosin and DAB times
            1 - s to 1 + s, plus -s to s (red, green and blue channels only); 0 = off.
        self_normalise: Centre and scale each channel of what the network sees by itself, last of
            all, in training and later: absolute intensities are lost.
        crops: What self-supervised methods compare.
    """

    normalise: Literal["image", "plate", "controls", "dataset", "unit"] = "dataset"
    crop: int | None = None
    flips: bool = True
    rotations: bool = True
    jitter: float = 0.0
    colour: float = 0.0
    hed: float = 0.0
    self_normalise: bool = False
    crops: Crops = field(default_factory=Crops)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """What is held out. The unit is the `holdout` role (a batch or a source), never the image.

    Attributes:
        test: Names of the held-out units; empty = every unit trains.
        column: A column of the manifest that says who trains and who is judged (`train`, `val`,
            `test`, `id_val`, `id_test`), as public benchmarks do; none = by the settings below.
        select_on: Whose validation selects the model: `wells` held out of the training plates,
            whole `units` (domains) held out of the training, or the `oracle`: the test images
            themselves, which is no honest number and is marked as such everywhere.
        validation: Names of the domains that select; empty = one drawn by the seed.
        wells: Share of the wells of each training plate that is kept for the in-domain test.
        exclude: Labels that are left out altogether (e.g. those that live in one unit).
        seed: The seed of every draw of the split.
    """

    test: tuple[str, ...] = ()
    column: str | None = None
    select_on: Literal["wells", "units", "oracle"] = "units"
    validation: tuple[str, ...] = ()
    wells: float = 0.15
    exclude: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a method is trained.

    Attributes:
        backbone: `cnn-small`, `resnet18`, `resnet50` or another name of `nn.backbones.BACKBONES`.
        weights: A local file of published weights for the backbone; or the folder of a run, whose
            encoder is taken over (backbone and channels must be the same); none = from scratch.
        stem: What the first convolution of such a file becomes for other channels than its own: the
            `average`, its gain kept, or the file's channels again and again, as `repeat`.
        sampler: What makes a batch: `shuffled` images of all plates; `episodes` of one context;
            `domains`: equally many images of each of `num_domains` domains; `chunks` of `chunk`
            images of one domain each; `auto` = what the method needs.
        num_perturbed: Labelled images in a pass: of one plate for episodes, of all for `erm`.
        num_controls: Negative controls of the same plate in an episode.
        missing_controls: What episodes do with a plate without controls: stop with an `error`, or
            train `without`, as ARM-BN does.
        num_domains: Domains in a batch of the sampler `domains`.
        distinct_domains: Whether these are different domains.
        chunk: Images of one domain that stand together in a batch of the sampler `chunks`.
        pure: A column of which all images of a batch share one value, e.g. Metadata_CellType.
        pairs: Where the second image of a self-supervised item comes from: the same treatment in
            another `domain`, `batch`, `plate` or `source`; `none` = all crops are of one image;
            `auto` = what the method needs.
        pair_fallback: The second image of one without such a partner: of an `other-well` with its
            treatment, the `same-image`; or `drop` it from the training.
        pair_positions: Whether partners may lie at the same position on the plate (`any`) or not
            (`other`): in a layout that repeats, position says the treatment.
        unlabelled: Whether self-supervised methods train on `all` images of the training units, or
            on labelled ones alone (`none`); controls and unknown labels count as unlabelled.
        accumulate: Passes for one step of the optimiser (8 plates in CS-ARM-BN).
        balance: Draw every class equally often (small classes again and again), as `class`; or
            every labelled image, as `none`.
        ratio: `fixed` episodes, or a `random` number of images and controls in each.
        epochs: At most so many passes over the number of training images.
        patience: Stop after so many epochs without a better validation.
        select_by: What the validation compares: its `loss`, its `accuracy`, the accuracy of its
            `worst-domain`, or that of a vote of the nearest training images (`knn`); `last` keeps
            the last weights, and so does `loss` for self-supervised methods, whose loss says
            nothing about the features.
        optimiser: `adam` (weight decay adds to the gradient), `adamw` (decoupled), or `sgd`.
        lr: Learning rate.
        weight_decay: Weight decay.
        momentum: Of `sgd`.
        schedule: Learning rate over the run, after the warm-up.
        warmup: Share of the run over which the learning rate rises linearly from 0.
        clip: Largest norm of the gradient; none = as it is.
        average: `swad` averages the weights densely over the valley of the validation loss.
        meta_lr: Fish: every step follows an inner step for each domain of the batch and moves by
            this share towards where they lead; none = plain steps.
        precision: `auto` takes bfloat16 where the processor computes in it, else float32.
        device: `auto` takes the GPU where there is one.
        checkpoint_seconds: Write `last.pt` at least so often; a kill loses no more than this.
        seed: The seed of weights, batches and views.
    """

    backbone: str = "cnn-small"
    weights: Path | None = None
    stem: Literal["average", "repeat"] = "average"
    sampler: Literal["auto", "shuffled", "episodes", "domains", "chunks"] = "auto"
    num_perturbed: int = 64
    num_controls: int = 128
    missing_controls: Literal["error", "without"] = "error"
    num_domains: int = 4
    distinct_domains: bool = True
    chunk: int = 4
    pure: str | None = None
    pairs: Literal["auto", "none", "domain", "batch", "plate", "source"] = "auto"
    pair_fallback: Literal["other-well", "same-image", "drop"] = "other-well"
    pair_positions: Literal["any", "other"] = "any"
    unlabelled: Literal["none", "all"] = "none"
    accumulate: int = 8
    balance: Literal["none", "class"] = "none"
    ratio: Literal["fixed", "random"] = "fixed"
    epochs: int = 200
    patience: int = 20
    select_by: Literal["loss", "accuracy", "worst-domain", "knn", "last"] = "loss"
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: float = 0.0
    clip: float | None = None
    average: Literal["none", "swad"] = "none"
    meta_lr: float | None = None
    precision: Literal["auto", "float32", "bf16"] = "auto"
    device: str = "auto"
    checkpoint_seconds: float = 60.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that decides a trained model, but the screen.

    Attributes:
        method: A name of `METHODS`.
        options: The method's own settings; absent ones take its defaults.
        view: What the network sees.
        split: What is held out.
        train: How it is trained.
    """

    method: str = "erm"
    options: dict[str, Any] = field(default_factory=dict)
    view: View = field(default_factory=View)
    split: SplitConfig = field(default_factory=SplitConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """How much of a plate an adapter sees, and with which class mix.

    Attributes:
        alpha: Dirichlet concentration of the class mix of a context; none = as on the plate.
        num_images: Perturbed images in a context; none = all of the plate.
        num_controls: Controls in a context; none = all of the plate.
        num_contexts: At most so many contexts of a plate are judged (a seeded draw); none = all.
    """

    alpha: float | None = None
    num_images: int | None = None
    num_controls: int | None = None
    num_contexts: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChoice:
    """Columns that play another role than the screen says; none = as the screen says.

    Attributes:
        label: What is predicted.
        context: Whose statistics are shared (default: the plate).
        domain: What carries the batch effect (default: the batch).
        holdout: What a protocol leaves out (default: the batch).
    """

    label: str | None = None
    context: str | None = None
    domain: str | None = None
    holdout: str | None = None


def to_dict(config: Any) -> Any:
    """JSON values of a configuration."""
    if is_dataclass(config) and not isinstance(config, type):
        return {item.name: to_dict(getattr(config, item.name)) for item in fields(config)}
    if isinstance(config, list | tuple):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {str(key): to_dict(value) for key, value in config.items()}
    return str(config) if isinstance(config, Path) else config


def from_dict(cls: type[T], values: dict[str, Any], *, where: str = "") -> T:
    """A configuration from JSON values.

    Raises:
        InputError: A key is unknown, missing, or has a value of another type.
    """
    hints = typing.get_type_hints(cls)
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(
            f"{where or cls.__name__} has no setting {unknown[0]!r}",
            fix=f"use one of: {', '.join(known)}",
        )
    for name, item in known.items():
        if name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise InputError(f"{where or cls.__name__} lacks {name!r}", fix=f"give {name!r}")
    return cls(
        **{name: _cast(hints[name], value, f"{where}{name}") for name, value in values.items()}
    )


def _cast(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(value, dict):
        return from_dict(hint, value, where=f"{where}.")  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        words = (None,) if str in arguments else (None, "None", "none")  # in a nested option
        if value in words and type(None) in arguments:
            return None
        for argument in arguments:
            if argument is not type(None):
                return _cast(argument, value, where)
    if origin is Literal:
        if value not in arguments:
            raise InputError(
                f"{where} is {value!r}", fix=f"use one of: {', '.join(map(repr, arguments))}"
            )
        return value
    if origin is tuple:
        if isinstance(value, str):  # in a nested option: "stem,1"
            value = value.replace(",", " ").split()
        return tuple(_cast(arguments[0], item, where) for item in value)
    if hint is Path:
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = hint in (int, float, str, bool)
    if plain and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise InputError(f"{where} is {value!r}", fix=f"give a value of type {hint.__name__}")
    return value


def config_hash(config: Any) -> str:
    """A short hash of a configuration, equal on every machine."""
    return digest(to_dict(config))


def load_config(cls: type[T], path: Path) -> T:
    """Read a configuration from a JSON file.

    Raises:
        InputError: The file is missing, is no JSON, or holds an unknown setting.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", fix="give an existing file"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no JSON: {error}", fix="mend the file") from error
    return from_dict(cls, values)
