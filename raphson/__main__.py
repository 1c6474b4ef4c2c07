"""``python -m raphson`` is the command line, which ``torchrun -m raphson`` starts once a process."""

from raphson.cli import main

if __name__ == "__main__":
    main()
