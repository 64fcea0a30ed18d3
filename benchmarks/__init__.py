"""How fast the daemon and its writers are, next to others that do the same. From the checkout: ``make bench``, or

``python -m benchmarks.drain``, ``scan``, ``writer``, ``memory``, ``recovery``, ``wakeup``, ``hosts``, each with
``--help``. They need Linux, Debian's postfix for the rows of Postfix and of its smtp-source, and ``hosts`` needs root
and Debian's iproute2, too.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))    # for ``support``
