"""The command line: ``deepcabac compress``, ``decompress``, ``inspect``, ``verify`` and ``search``.

Results go to stdout, progress and notes to stderr. What the user can mend is one line, ``error: ...``. Exit codes: 0;
1 for a damaged file; 2 for anything else that went wrong; 130 after Ctrl-C.
"""

from .compress import compress
from .decompress import decompress
from .look import inspect, verify
from .program import main, program
from .search import search

__all__ = ["main", "program"]

for _command in (compress, decompress, inspect, search, verify):
    program.add_command(_command)
