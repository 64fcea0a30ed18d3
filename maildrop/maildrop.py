"""The daemon, started by the path of this file: ``python .../maildrop/maildrop.py CONFIG``, as 2.3's scripts say it."""

import os
import sys

if __name__ == "__main__":
    here = os.path.dirname(os.path.realpath(__file__))
    # This folder must not be searched for modules: in it, `maildrop` is this very file. The folder above it is searched
    # first for one import only, so that neither another installed `maildrop` nor its neighbours get in the way.
    sys.path[:] = [os.path.dirname(here)] + [path for path in sys.path if os.path.realpath(path or ".") != here]
    import maildrop    # noqa: F401

    del sys.path[0]
    if sys.argv[1:2] == ["--ctl"]:    # how the script maildropctl gets here
        from maildrop import ctl

        sys.exit(ctl.main(sys.argv[2:]))
    from maildrop import daemon

    sys.exit(daemon.main(sys.argv[1:]))
