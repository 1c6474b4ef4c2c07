"""Make a virtual environment in .venv and install raphson in it, with the versions its tests pass with.

python3 install.py        to use raphson
python3 install.py dev    to change it: with tests, linter and type checker
"""

import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
PYTHON = os.path.join(ROOT, ".venv", *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))
VERSION = "import sys; print(sys.version_info[:2])"


def has_this_python():
    """Whether .venv exists and has the Python version that runs this file."""
    try:
        return subprocess.check_output([PYTHON, "-c", VERSION]).decode().strip() == str(sys.version_info[:2])
    except (OSError, subprocess.CalledProcessError):
        return False


def pip_install(*arguments):
    """Install into .venv what the arguments name, in the pinned versions."""
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", "constraints.txt"]
    subprocess.check_call(pip + list(arguments), cwd=ROOT)


def main():
    """Check the version of Python, make .venv, install."""
    # Read by old versions of Python too, which are to say what is wrong: nothing here needs 3.11.
    if sys.version_info < (3, 11):  # noqa: UP036
        found = sys.version.split()[0] + " (" + sys.executable + ")"
        sys.exit("raphson needs Python 3.11 or newer, this is " + found + ". Name a newer one: python3.12 install.py")
    if sys.argv[1:] not in ([], ["dev"]):
        sys.exit(__doc__)
    sys.stderr.write("Installing raphson in .venv. PyTorch is a large download, from 200 MB to several GB.\n")
    try:
        if not has_this_python():
            subprocess.check_call([sys.executable, "-m", "venv", "--clear", ".venv"], cwd=ROOT)
        # Constraints hold for what pip installs, not for what it builds with: the build takes the setuptools of .venv.
        pip_install("setuptools")
        pip_install("--no-build-isolation", "--editable", ".[dev]" if sys.argv[1:] else ".")
        # pip compiles what it copies, not what it leaves here: the first import, or every one where none may write
        # (PYTHONDONTWRITEBYTECODE), would take 0.3 s longer
        subprocess.check_call([PYTHON, "-m", "compileall", "-q", "raphson"], cwd=ROOT)
    except subprocess.CalledProcessError as error:
        sys.exit("The installation did not succeed; what went wrong stands above. The step was: " + " ".join(error.cmd))


if __name__ == "__main__":
    main()
