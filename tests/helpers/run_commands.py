"""
Runs several commands in one process, so that torch is imported once:

    python tests/helpers/run_commands.py jobs.json folder

`jobs.json` maps a name to a command line that begins with `hf-tfm` or with the path of a script. Standard output and
error, including that of libraries in C and Rust, go to `NAME.out` and `NAME.err` in the folder, the exit code to
`NAME.code`.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import hf_tfm_command


def run(program: str, *arguments: str) -> int:
    """Runs a command and returns its exit code."""
    try:
        if program == "hf-tfm":
            return hf_tfm_command.main(list(arguments))
        sys.argv = [program, *arguments]
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    except SystemExit as error:
        return error.code or 0
    return 0


def main(jobs: dict[str, list[str]], folder: Path) -> None:
    for name, command in jobs.items():
        for descriptor, suffix in ((1, "out"), (2, "err")):
            file = os.open(folder / f"{name}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
            os.close(file)
        code = run(*command)
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / f"{name}.code").write_text(str(code))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
