"""The network: S²-FPN in both published revisions, its parts, its encoders and the author's checkpoint layout."""

from s2fpn_lib.model.encoders import ENCODERS
from s2fpn_lib.model.published import PUBLISHED_MODELS, load_published
from s2fpn_lib.model.s2fpn import NORMALIZATIONS, S2FPN, Switches, build_model
