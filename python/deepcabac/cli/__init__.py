"""The command line: ``deepcabac compress``, ``decompress``, ``inspect``, ``verify`` and ``search``.

Results go to stdout, progress and notes to stderr. What the user can mend is one line, ``error: ...``. Exit codes: 0;
1 for a damaged file; 2 for anything else that went wrong; 130 after Ctrl-C.
"""

from . import compress, decompress, look, search
from .group import main, program

__all__ = ["main", "program"]

for _command in (compress.compress, decompress.decompress, look.inspect, search.search, look.verify):
    program.add_command(_command)
