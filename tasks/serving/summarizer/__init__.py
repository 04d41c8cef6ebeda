"""The summarizer that is served: prompt, truncation, stop rules and decoding.

Training encodes rows with this code, evaluation generates with it and MLflow serves it. This whole
folder is copied into every package (a model folder in Hugging Face format with `summarizer.json`, the
settings), so what was judged is what is served. It imports torch, transformers and, in pyfunc.py,
MLflow; within the folder imports are relative, so that copies of different versions can be loaded
side by side in one process.

Not for anything that needs this project installed: nothing here imports any of it. Importing this
module imports no torch.
"""

from .chat import conversation_of, messages_of, render, turn_end
from .clean import clean, fault_of
from .generate import Generator
from .load_model import (
    needs_several_gpus,
    parameter_count,
    refuse_offloaded,
    reset_dynamic_rope,
    served_attention,
)
from .map_reduce import MAX_SHRINK, split
from .prompt import encode, encode_answer, encode_completion, fit, fit_chat, full_length
from .settings import (
    AUTO_SLOTS,
    CONTINUOUS_MODEL_TYPES,
    RESERVED_BYTES,
    SETTINGS_FILE,
    WEIGHTS_SHARE,
    Document,
    Loss,
    Message,
    SummarizerSettings,
    Summary,
)
from .template import DOCUMENT, ONLY_DOCUMENT, filled, values_of

__all__ = [
    "AUTO_SLOTS",
    "CONTINUOUS_MODEL_TYPES",
    "DOCUMENT",
    "MAX_SHRINK",
    "ONLY_DOCUMENT",
    "RESERVED_BYTES",
    "SETTINGS_FILE",
    "WEIGHTS_SHARE",
    "Document",
    "Generator",
    "Loss",
    "Message",
    "SummarizerSettings",
    "Summary",
    "clean",
    "conversation_of",
    "encode",
    "encode_answer",
    "encode_completion",
    "fault_of",
    "filled",
    "fit",
    "fit_chat",
    "full_length",
    "messages_of",
    "needs_several_gpus",
    "parameter_count",
    "refuse_offloaded",
    "render",
    "reset_dynamic_rope",
    "served_attention",
    "split",
    "turn_end",
    "values_of",
]
