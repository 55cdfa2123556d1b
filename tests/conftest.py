"""Shapes in annotations are checked while tests run; helpers (`builders`, `scripted_engine`) import by their own name
in any import mode.
"""

import sys
from pathlib import Path

from jaxtyping import install_import_hook

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "unit")]
install_import_hook(["earwise.forest", "earwise.losses", "earwise.models.parts"], "beartype.beartype")
