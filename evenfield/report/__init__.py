"""From records and artifacts to tables and one page; never imports torch, never measures."""
