"""`python -m hf_tfm.apps.cli`, for environments where the `hf-tfm` script is not on the path."""

import sys

from . import main


sys.exit(main())
