"""How fast the daemon and its writers are, next to others that do the same. From the checkout: ``make bench``, or

``python -m benchmarks.drain``, ``scan``, ``writer``, ``memory``, ``wakeup``, each with ``--help``. They need Linux, and
Debian's postfix for the rows of Postfix and of its smtp-source.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))    # for ``support``
