"""`python -m jaxalign`: the same as the `jaxalign` command."""

from jaxalign.cli.main import run

if __name__ == "__main__":
    run()
