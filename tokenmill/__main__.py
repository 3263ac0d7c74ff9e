"""`python -m tokenmill`: the command line where no script is on the path."""

from tokenmill.pipelines.cli import main

if __name__ == "__main__":
    main()
