"""Networks that other runtimes run: what is written for them, and how their files are used like any other weights."""
