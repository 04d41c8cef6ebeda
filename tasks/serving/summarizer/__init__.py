"""The summarizer that is served: prompt, truncation, stop rules and decoding.

Training encodes rows with this code, evaluation generates with it and MLflow serves it. This whole
folder is copied into every package (a model folder in Hugging Face format with `summarizer.json`, the
settings), so what was judged is what is served. It imports torch, transformers and, in pyfunc.py,
adapter.py and scoring_server.py, MLflow; within the folder imports are relative, so that copies of different
versions can be loaded side by side in one process.

pyfunc.py imports adapter.py and scoring_server.py when it loads a package: they decide nothing that training
does, and what is imported here is part of every step's key.

Not for anything that needs this project installed: nothing here imports any of it. Importing this
module imports no torch.
"""

from .chat import (
    answer_end,
    conversation_of,
    first_left_out,
    left_out,
    messages_of,
    remedy,
    render,
    require_continued,
    turn_end,
)
from .clean import clean, fault_of
from .generate import Generator
from .load_model import (
    needs_several_gpus,
    parameter_count,
    refuse_offloaded,
    reset_dynamic_rope,
    room_for_weights,
    served_attention,
)
from .map_reduce import MAX_SHRINK, split
from .prompt import encode, encode_answer, encode_completion, fit, fit_chat, full_length
from .reasoning import BLOCKS as REASONING_BLOCKS
from .reasoning import split_reasoning
from .request_documents import documents_of
from .request_params import asked_for, params_of
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
from .special_tokens import frame, require_plain, special_ids
from .template import DOCUMENT, ONLY_DOCUMENT, filled, values_of

__all__ = [
    "AUTO_SLOTS",
    "CONTINUOUS_MODEL_TYPES",
    "DOCUMENT",
    "MAX_SHRINK",
    "ONLY_DOCUMENT",
    "REASONING_BLOCKS",
    "RESERVED_BYTES",
    "SETTINGS_FILE",
    "WEIGHTS_SHARE",
    "Document",
    "Generator",
    "Loss",
    "Message",
    "SummarizerSettings",
    "Summary",
    "answer_end",
    "asked_for",
    "clean",
    "conversation_of",
    "documents_of",
    "encode",
    "encode_answer",
    "encode_completion",
    "fault_of",
    "filled",
    "first_left_out",
    "fit",
    "fit_chat",
    "frame",
    "full_length",
    "left_out",
    "messages_of",
    "needs_several_gpus",
    "parameter_count",
    "params_of",
    "refuse_offloaded",
    "remedy",
    "render",
    "require_continued",
    "require_plain",
    "reset_dynamic_rope",
    "room_for_weights",
    "served_attention",
    "special_ids",
    "split",
    "split_reasoning",
    "turn_end",
    "values_of",
]
