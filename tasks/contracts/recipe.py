"""Recipe: everything a run needs to know, and the only place where a default is written.

The Prefect UI builds its form, and `make docs` docs/recipe.md, from these titles and descriptions: each
says what the setting does, its unit, and why the default is what it is. Names are those of PEFT, TRL and
MLflow. A YAML recipe holds only what differs from here. Over 400 lines, since one file with every setting
is easier to search than several.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from tasks.contracts import credentials, template_places

MetricName = Literal["rouge1", "rouge2", "rougeL", "rougeLsum", "loss"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # valid in MLflow's names and filters, and in file names
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Column = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Column, ...], Field(min_length=1)]
PlaceName = Annotated[str, Field(pattern=template_places.NAME)]
CLUSTER = r"(dask(:[a-z]+://[^\s/]+:\d+)?|ray(:ray://[^\s/]+:\d+)?)"


class Settings(BaseModel):
    """A group of settings: frozen, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        serialize_by_alias=True,  # names that Python does not allow: register.as
    )


class Fields(Settings):
    """Which column of the input holds what. All None: guessed from usual names, as the data report shows."""

    document: str | None = Field(
        None,
        title="Document column",
        description="The text to summarize. None: guessed, since most data sets use one of a dozen names.",
    )
    summary: str | Names | None = Field(
        None,
        title="Summary column(s)",
        description="The reference summary; several columns are several references of one document, and "
        "the best match counts in ROUGE. None: guessed.",
    )
    id: str | None = Field(
        None,
        title="Id column",
        description="A row's own name, by which reports show it. None: guessed, or else file and line.",
    )
    text: str | None = Field(
        None,
        title="Chat column",
        description="One column that holds a conversation ([INST] question [/INST] answer, or a list "
        "of messages), instead of the document and summary columns: its last answer is the reference. None: "
        "guessed.",
    )
    system: Column | None = Field(
        None,
        title="System message column",
        description="With prompt.format: chat, each row's own system message; prompt.system applies where "
        "it is blank. None: guessed from the names system, system_prompt and system_message.",
    )
    inputs: dict[PlaceName, Column] | None = Field(
        None,
        min_length=1,
        title="Input columns",
        description="Several texts in place of one document: a name for each and its column, as in "
        "{instruction: instruction, context: passage}. prompt.template then holds {instruction} and "
        "{context}, and the served model takes both by name. None: one document.",
    )
    optional: tuple[PlaceName, ...] = Field(
        (),
        title="Optional inputs",
        description="Names of inputs that may be blank or absent, as Alpaca's input is. A row in which all "
        "inputs are blank is rejected. None by default: a blank text is most often a mistake.",
    )
    ignore: tuple[Column, ...] = Field(
        (),
        title="Ignored columns",
        description="Columns, and keys of messages, that are left out on purpose. A column that may carry "
        "the task or its quality (instruction, context, label, score and the like) stops the run unless it "
        "is used or named here; so do keys of messages that would not be used.",
    )

    @model_validator(mode="after")
    def _one_form(self) -> Fields:
        if self.text and (self.document or self.summary or self.inputs):
            raise ValueError("text replaces document, inputs and summary: name it, or name those")
        if self.document and self.inputs:
            raise ValueError("inputs replaces document: name one of them")
        if self.system and self.inputs:
            raise ValueError(
                "system stands before a document or a conversation: with inputs name its column among them"
            )
        return self

    @model_validator(mode="after")
    def _each_column_once(self) -> Fields:
        inputs = self.inputs or {}
        if unknown := [name for name in self.optional if name not in inputs]:
            raise ValueError(
                f"optional names {', '.join(unknown)}, and inputs has {', '.join(inputs) or 'none'}: "
                "name inputs that may be blank"
            )
        if swapped := [n for n, c in inputs.items() if n != c and n in inputs.values()]:
            raise ValueError(
                f"inputs gives the name {', '.join(swapped)} to another column than the one that is called "
                "so: choose other names, a request may use either"
            )
        summaries = (self.summary,) if isinstance(self.summary, str) else self.summary or ()
        used = [*inputs.values(), self.document, *summaries, self.text, self.system]
        named = [name for name in used if name]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"names {', '.join(twice)} twice: a column has one use")
        if both := [name for name in self.ignore if name in named]:
            raise ValueError(f"ignore names {', '.join(both)}, which is used: remove it from one")
        return self


class Data(Settings):
    """Where rows come from and how many are used."""

    train: str = Field(
        title="Training data",
        description="A file (JSONL, JSON, CSV, TSV, Parquet, Arrow), a folder of them, s3://bucket/key, or "
        "hub:owner/name for a dataset of the Hugging Face hub. Relative paths start at the working folder.",
        min_length=1,
    )
    evaluation: str | None = Field(
        None,
        title="Evaluation data",
        description="In the same forms. None: a share of the training data, chosen by a hash of the "
        "document, so that no document changes sides when the data grow.",
    )
    open_evaluation: str | None = Field(
        None,
        title="Open evaluation data",
        description="Rows whose scores and examples are always shown and never decide, in the same forms; "
        "all rows of evaluation then decide. evaluation_rows limits each. None: gate.open_share of the "
        "evaluation rows.",
    )
    fields: Fields = Field(default=Fields(), title="Columns")
    evaluation_fields: Fields | None = Field(
        None,
        title="Columns of the evaluation data",
        description="Where evaluation (and fresh) files have other columns than the training files, as "
        "DialogSum's: {summary: [summary1, summary2, summary3]}. What it leaves out is as in fields. None: "
        "all as in fields.",
    )
    train_rows: int | None = Field(
        None,
        gt=0,
        title="Training rows",
        description="Use the first N usable rows, for a short run. None: all.",
    )
    evaluation_rows: int | None = Field(
        None,
        gt=0,
        title="Evaluation rows",
        description="Use the first N usable rows: generating takes time for each. None: all; more rows "
        "can show smaller gains.",
    )
    evaluation_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        title="Evaluation share",
        description="Share of the documents held out when no evaluation data are named. A tenth leaves "
        "most rows for training; about 500 evaluation rows are needed to show a gain of 0.015 ROUGE.",
    )
    min_new_rows: int = Field(
        100,
        gt=0,
        title="New rows for a retrain",
        description="When data arrive, a retrain starts from this many rows that the champion has "
        "not seen: a handful would rarely change the model, and each retrain is one more look at the "
        "evaluation set.",
    )
    revision: str | None = Field(
        None,
        title="Hub revision",
        description="Commit of the hub dataset; required by hub: sources, so that the same recipe means "
        "the same rows tomorrow. None: for local files and S3.",
    )
    train_split: str = Field(
        "train",
        title="Hub split for training",
        description="For hub: sources alone. The name that most datasets use.",
    )
    evaluation_split: str = Field(
        "validation",
        title="Hub split for evaluation",
        description="For hub: sources alone. Not test: that split stays unseen for a final comparison.",
    )
    max_rejected_share: Share = Field(
        0.01,
        title="Largest share of rejected rows",
        description="With a larger share of unusable rows the run stops. Real data lose one row in a "
        "thousand to encoding accidents; one in a hundred means that a file or a column name is wrong.",
    )
    max_row_bytes: int = Field(
        1 << 24,
        gt=0,
        title="Longest row (bytes)",
        description="Longer rows are rejected without being read into memory, in every format. 16 MiB is "
        "about four million tokens, more than any context: a longer row is a file without line ends, or "
        "a quote that is never closed.",
    )
    encoding: str | None = Field(
        None,
        title="Encoding of text files",
        description="As Python names it, for example cp1252 or utf-16-le, for JSON and CSV. None: UTF-8, or "
        "UTF-16 and UTF-32 where the file begins with a byte order mark; another is refused and named. A "
        "file that is UTF-8 all the same is read as such.",
    )
    near_duplicate_jaccard: PositiveShare = Field(
        0.8,
        title="Near-duplicate similarity",
        description="Training documents at least this similar to an evaluation document (Jaccard index "
        "of word 5-grams) are dropped from training. Case, punctuation, accents, invisible and look-alike "
        "characters and speakers' names do not count.",
    )
    near_duplicate_containment: PositiveShare = Field(
        0.5,
        title="Near-duplicate containment",
        description="So are those that hold at least this share of an evaluation document's word 5-grams, "
        "or of which this share stands in one (for documents of 24 words or more). In DialogSum all read "
        "from 0.4 up are edited copies; below 0.3 they are dialogues of one form. 1: only whole ones.",
    )

    @property
    def fields_of_evaluation(self) -> Fields:
        """The columns of evaluation and fresh files: `evaluation_fields` over `fields`."""
        if self.evaluation_fields is None:
            return self.fields
        own = {name: getattr(self.evaluation_fields, name) for name in self._set_for_evaluation}
        inherited = {name: getattr(self.fields, name) for name in Fields.model_fields}
        replaced = {
            "document": {"inputs", "optional", "text"},
            "inputs": {"document", "optional", "system", "text"},
            "text": {"document", "inputs", "optional", "summary"},
            "summary": {"text"},
        }
        for name in self._set_for_evaluation:
            for other in replaced.get(name, set()):
                inherited[other] = Fields.model_fields[other].default
        return Fields(**inherited | own)

    @property
    def _set_for_evaluation(self) -> set[str]:
        return self.evaluation_fields.model_fields_set if self.evaluation_fields else set()

    @model_serializer(mode="wrap")
    def _without_what_it_leaves_out(
        self, serialize: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        # A recipe travels as JSON: written out, a null would replace a column of `fields`.
        values: dict[str, Any] = serialize(self)
        if self.evaluation_fields is not None and "evaluation_fields" in values:
            mode = "json" if info.mode_is_json() else "python"
            values["evaluation_fields"] = self.evaluation_fields.model_dump(
                mode=mode, exclude_unset=True
            )
        return values

    @model_validator(mode="after")
    def _open_evaluation_has_deciding_rows(self) -> Data:
        if self.open_evaluation is not None and self.evaluation is None:
            raise ValueError(
                "open_evaluation needs data.evaluation, the rows that decide; name both, or leave "
                "open_evaluation out: gate.open_share of the held-out rows is then open"
            )
        return self

    @model_validator(mode="after")
    def _evaluation_fields_fit(self) -> Data:
        if self.evaluation_fields is None:
            return self
        if self.evaluation is None:
            raise ValueError(
                "evaluation_fields needs data.evaluation: rows held out of the training data have the "
                "columns of fields"
            )
        try:
            of_evaluation = self.fields_of_evaluation
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(
                f"evaluation_fields, with what it leaves out as in fields, is not usable: {reason}"
            ) from None
        ours, theirs = set(self.fields.inputs or ()), set(of_evaluation.inputs or ())
        if ours != theirs:
            raise ValueError(
                f"evaluation_fields has inputs {', '.join(sorted(theirs)) or 'none'} and fields "
                f"{', '.join(sorted(ours)) or 'none'}: give both the same names, one prompt is made of them"
            )
        return self


class Base(Settings):
    """The model that is fine-tuned."""

    model: str = Field(
        title="Base model",
        description="A local folder in Hugging Face format, or a hub name (owner/name).",
        min_length=1,
    )
    revision: str | None = Field(
        None,
        title="Hub revision",
        description="Commit of the hub model; required by hub names, so that the same recipe means the "
        "same weights tomorrow. None: for a local folder.",
    )
    quantization: Literal["nf4", "fp4", "int8", "none"] = Field(
        "nf4",
        title="Quantization in training",
        description="How the frozen weights are stored. nf4: QLoRA (4-bit NormalFloat, double "
        "quantization), a quarter of the memory of 16 bits. fp4: 4-bit floats, also doubly quantized. "
        "int8: 8 bits, a scale for each row. none: as the base has them.",
    )
    context_tokens: int | None = Field(
        None,
        gt=0,
        title="Context (tokens)",
        description="Most tokens of prompt and summary together. Above the base's own maximum it "
        "needs rope; below, it only limits, which saves memory. None: the base's own maximum.",
    )
    rope: Literal["ntk", "linear", "dynamic", "yarn"] | None = Field(
        None,
        title="RoPE scaling",
        description="How positions are scaled to context_tokens, in training, evaluation and serving. "
        "ntk: a fixed base frequency, so that every server computes the same. linear, yarn: by a fixed "
        "factor. dynamic: by each text's length; documents are then summarized one by one. None: not "
        "scaled.",
    )

    @model_validator(mode="after")
    def _scales_to_something(self) -> Base:
        if self.rope and self.context_tokens is None:
            raise ValueError(
                f"rope is {self.rope}, but context_tokens is not set: set it to the tokens to scale to"
            )
        return self


class Prompt(Settings):
    """How a document becomes the model's input: in training, evaluation and serving alike."""

    format: Literal["template", "chat"] = Field(
        "template",
        title="Form",
        description="template: the document is put into the prompt below, which fits any base. chat: it "
        "is the user's message, or a conversation up to its last question, written by the model's chat "
        "template, as instruction-tuned bases expect it.",
    )
    template: str = Field(
        "Summarize the following conversation.\n\n{document}\n\nSummary: ",
        title="Prompt",
        description="Text that holds {document} exactly once, or each name of data.fields.inputs "
        "({instruction}, {context}). Other braces are text. With format: chat it is the user's message, and "
        "used only with inputs; without it they are joined by blank lines.",
    )
    system: str | None = Field(
        None,
        min_length=1,
        title="System message",
        description="With format: chat, the system message of every conversation that has none of its "
        "own. None: no system message.",
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        title="Chat template",
        description="With format: chat: llama-2, a file with a Jinja template, or the template itself. "
        "None: that of the base's tokenizer, which an instruction-tuned base was trained with.",
    )
    template_arguments: dict[str, JsonValue] = Field(
        {},
        title="Chat template's arguments",
        description="Variables of the chat template, as its authors name them: {enable_thinking: false} "
        "for Qwen3, {date_string: 26 Jul 2024} for Llama 3. They are the same in training, evaluation "
        "and serving, and stand in the package's template, so that other servers need not be told.",
    )
    max_source_tokens: int | None = Field(
        None,
        gt=0,
        title="Longest prompt (tokens)",
        description="Longer prompts are cut to this, or summarized in parts. None: what the context "
        "leaves beside max_new_tokens, so that nothing is cut without need.",
    )
    truncate: Literal["tail", "head", "middle", "error"] = Field(
        "tail",
        title="Cut from",
        description="Which part of a too long document is dropped. tail: texts say most at the start. "
        "error: nothing is cut, such rows are rejected. Of several inputs the longest is cut, and another "
        "only if the prompt is too long without that one.",
    )
    summarize: Literal["direct", "map_reduce"] = Field(
        "direct",
        title="Documents that do not fit",
        description="direct: they are cut. map_reduce: their parts are summarized, then the summaries "
        "of the parts together, in evaluation and serving; slower. Training and the loss cut them either "
        "way, since a reference belongs to a document and not to its parts.",
    )

    reasoning: Literal["strip", "learn"] | None = Field(
        None,
        title="Reasoning in answers",
        description="What becomes of reasoning beside an answer (reasoning_content, reasoning or thinking "
        "of a message) and of a think block that it begins with. strip: it is left out of training rows, "
        "references and what the model writes, so that it is neither learned nor judged. learn: it is a part "
        "of the answer, in a think block before it, learned and judged with it; max_new_tokens must hold "
        "both. None: rows that have any are rejected, since leaving it out trains another model.",
    )

    @model_validator(mode="after")
    def _parts_or_rejects(self) -> Prompt:
        if self.summarize == "map_reduce" and self.truncate == "error":
            raise ValueError(
                "summarize map_reduce reads documents that do not fit, and truncate error rejects "
                "them: choose tail, head or middle (for training rows), or summarize direct"
            )
        if self.summarize == "map_reduce" and self.format == "chat":
            raise ValueError(
                "summarize map_reduce reads a text in parts, and format chat a conversation, which "
                "has none: choose summarize direct, or format template"
            )
        return self

    @model_validator(mode="after")
    def _one_format(self) -> Prompt:
        if self.format == "template" and (self.system or self.chat_template):
            raise ValueError("system and chat_template need format: chat; set that, or remove them")
        if self.format == "template" and self.template_arguments:
            raise ValueError("template_arguments need format: chat; set that, or remove them")
        return self

    @property
    def has_own_template(self) -> bool:
        """Whether the recipe names one."""
        return bool(self.template != type(self).model_fields["template"].default)


class Adapter(Settings):
    """The adapter, in PEFT's terms."""

    # Sources: LoRA, Hu et al. 2021, arXiv:2106.09685; DoRA, Liu et al. 2024, arXiv:2402.09353;
    # rsLoRA, Kalajdzievski 2023, arXiv:2312.03732.
    kind: Literal["lora", "dora", "rslora"] = Field(
        "lora",
        title="Kind",
        description="lora: W + alpha/r BA. rslora: W + alpha/sqrt(r) BA, which trains better at high "
        "ranks. dora: the rows' lengths are learned apart from their directions; slower, more memory.",
    )
    r: int = Field(
        16,
        gt=0,
        title="Rank",
        description="Rank of the update of each weight matrix. 16 is enough for one task; memory and "
        "time grow with it.",
    )
    lora_alpha: float = Field(
        32,
        gt=0,
        title="Alpha",
        description="The update is scaled by alpha / r (rslora: alpha / sqrt(r)). Twice the rank: then "
        "the learning rate can stay when the rank changes with it.",
    )
    lora_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        title="Dropout",
        description="Share of the adapter's inputs set to zero in training. 0: one epoch rarely "
        "overfits, and dropout excludes the fast path on a GPU.",
    )
    target_modules: Literal["all-linear"] | Names = Field(
        "all-linear",
        title="Target modules",
        description="all-linear (every linear layer but the head, as in the QLoRA paper), or a list of "
        "module name endings such as q_proj.",
    )


class Training(Settings):
    """Fine-tuning, in TRL's and transformers' terms."""

    num_train_epochs: float = Field(
        1.0,
        gt=0,
        title="Epochs",
        description="Passes over the training rows. One is enough for thousands of rows; more can overfit.",
    )
    max_steps: int = Field(
        -1,
        ge=-1,
        title="Most steps",
        description="Optimizer steps, whatever the epochs, for a short run. -1: the epochs decide.",
    )
    learning_rate: float = Field(
        2e-4,
        gt=0,
        title="Learning rate",
        description="Of the adapter, at the top of the schedule. 2e-4 is the QLoRA paper's for 7B to 13B; "
        "larger bases take less.",
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear",
        title="Schedule",
        description="How the learning rate falls after the warm-up, by transformers' names. linear: to "
        "zero at the last step, so that the last rows do not move the weights far.",
    )
    warmup_steps: float = Field(
        0.03,
        ge=0,
        title="Warm-up",
        description="Steps over which the learning rate rises from zero; below 1, a share of all steps. "
        "A few: the adapter starts at zero, and only the optimizer's averages must settle.",
    )
    per_device_train_batch_size: int = Field(
        2,
        gt=0,
        title="Micro-batch",
        description="Packed sequences that a device computes at once. Two fit a small GPU; more use a "
        "large one better, up to its memory.",
    )
    gradient_accumulation_steps: int = Field(
        1,
        gt=0,
        title="Gradient accumulation",
        description="Micro-batches whose gradients are added before a step: a larger batch without more "
        "memory. One: small data sets need every step.",
    )
    devices: int = Field(
        1,
        gt=0,
        title="Devices",
        description="GPUs of a machine that train together, each on its own rows. A step learns from "
        "micro-batch x accumulation x devices x machines sequences, as in transformers: with twice the "
        "devices, half the accumulation is the same step. Not chosen automatically, since it changes "
        "the weights that are learned.",
    )
    nodes: int = Field(
        1,
        gt=0,
        title="Machines",
        description="Machines with that many devices each. They find each other by torchrun's variables "
        "PET_RDZV_ENDPOINT or PET_MASTER_ADDR (docs/devices.md).",
    )
    max_length: int = Field(
        1024,
        gt=0,
        title="Sequence length (tokens)",
        description="Most tokens of a training sequence: longer rows are cut, shorter ones packed up to "
        "it. 1,024 hold most dialogues with their summaries; memory grows with it.",
    )
    packing: bool = Field(
        True,
        title="Pack rows",
        description="Several rows share a sequence, so that none of it is padding. Rows never attend to "
        "each other.",
    )
    optim: Literal[
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_bnb_8bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "adafactor",
        "sgd",
    ] = Field(
        "adamw_torch",
        title="Optimizer",
        description="By transformers' names. adamw_torch: an adapter is small, so that full-precision "
        "states cost little; the 8-bit and paged ones save memory with high ranks.",
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        title="Weight decay",
        description="How strongly the adapter is pulled to zero, in AdamW's terms. 0: the low rank limits "
        "it already.",
    )
    max_grad_norm: float = Field(
        1.0,
        gt=0,
        title="Gradient clipping",
        description="Largest norm of a step's gradient; a larger one is scaled down, so that an odd row "
        "does not throw the adapter off.",
    )
    gradient_checkpointing: bool = Field(
        False,
        title="Checkpoint activations",
        description="Compute layers again in the backward pass: less memory, about a third more time. Off: "
        "on a GPU training.memory: auto recomputes what it must.",
    )
    memory: Literal["auto", "resident", "none", "selective", "full", "least", "plain"] = Field(
        "auto",
        title="Memory on a GPU",
        description="All compute the same function. auto: the fastest that fits the free memory. "
        "resident: NF4 weights dequantized once, nothing recomputed. none: weights as loaded, nothing "
        "recomputed. selective: norms and activations recomputed. full: all layers recomputed. least: "
        "as full, with the layers' inputs and the embedding in host memory. plain: TRL's own path.",
    )
    base_weights: Literal["auto", "replicated", "sharded"] = Field(
        "auto",
        title="Base weights on several devices",
        description="replicated: each device holds all of them. sharded: each holds a part, and gathers "
        "a layer's weights before it computes the layer. Both learn the same weights. auto: sharded when "
        "one GPU cannot hold all of them and train.",
    )
    save_steps: int = Field(
        50,
        gt=0,
        title="Steps between checkpoints",
        description="A run that was killed repeats at most this many steps when it resumes. An adapter's "
        "checkpoint is small, so that saving often costs little.",
    )
    logging_steps: int = Field(
        5,
        gt=0,
        title="Steps between log lines",
        description="Loss and throughput are logged each so many steps, for the curve in the report.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        title="Seed",
        description="Of the adapter's first weights and the order of rows. Fixed, so that the same recipe "
        "trains the same adapter.",
    )
    timeout_hours: float = Field(
        48.0,
        gt=0,
        title="Time limit (hours)",
        description="Training that takes longer is ended and the run fails, so that a hung one does not "
        "hold a GPU for ever. Its checkpoints stay.",
    )
    checkpoint_store: str | None = Field(
        None,
        min_length=1,
        title="Checkpoint store",
        description="s3://bucket/prefix, or a folder that all workers see: checkpoints are copied there, "
        "and a run can resume from them on any machine. None: this machine only.",
    )

    @model_validator(mode="after")
    def _does_a_step(self) -> Training:
        if self.max_steps == 0:
            raise ValueError("max_steps 0 trains nothing; -1 lets the epochs decide")
        return self


class Merge(Settings):
    """Folding the adapter into the weights."""

    onto: Literal["quantized_base", "original_base"] = Field(
        "quantized_base",
        title="Merge onto",
        description="quantized_base: the dequantized weights, which the adapter was trained against; on a "
        "toy model that drifts by 1.0e-4 nats, the original base by 5.2e-3. original_base: the weights "
        "as they were before quantization.",
    )
    max_kl: float = Field(
        1e-2,
        gt=0,
        title="Largest drift (KL, nats a token)",
        description="With a larger mean KL divergence between adapter and merged model the run stops. "
        "0.01 is ten times what rounding to bf16 costs, and far below what fine-tuning changes.",
    )
    min_top1_agreement: Share = Field(
        0.98,
        title="Least top-1 agreement",
        description="Share of tokens for which adapter and merged model rank the same token first; below "
        "it the run stops. Near ties that rounding to 16 bits can turn round (0.2 nats between the two "
        "tokens) count as the same: a sound merge has next to no others.",
    )
    drift_rows: int = Field(
        16,
        gt=0,
        title="Least rows in the drift check",
        description="Rows on which both are compared, spread over the training rows; all, if there are "
        "fewer.",
    )
    drift_tokens: int = Field(
        4000,
        gt=0,
        title="Least tokens in the drift check",
        description="More rows are taken until their references hold so many tokens, so that the figures "
        "mean something: of 600 tokens one in fifty is twelve. On a GPU that takes seconds.",
    )


class Evaluation(Settings):
    """How summaries are generated for the gate, and by the served model."""

    max_new_tokens: int = Field(
        128,
        gt=0,
        title="Longest summary (tokens)",
        description="Generation is cut off there. 128 hold a summary of three to five sentences; "
        "truncated references and outputs are counted in the report.",
    )
    batch_size: int = Field(
        16,
        gt=0,
        title="Documents a batch",
        description="Documents that are generated together. Sixteen fit a small GPU; lower it when memory "
        "runs out. Under decoding: auto a GPU chooses for itself, up to 256.",
    )
    kv_cache: Literal["device", "offloaded"] = Field(
        "device",
        title="Keys and values",
        description="Where the attention's keys and values of running texts are stored, in evaluation and "
        "serving. device: on the GPU, fastest. offloaded: in host memory, except those of the layer that "
        "is computed; slower, but long documents fit a small GPU.",
    )
    decoding: Literal["auto", "generate", "continuous"] = Field(
        "auto",
        title="Decoding",
        description="How summaries are generated together. generate: batch by batch, padded to the "
        "longest, by transformers. continuous: a finished summary's slot goes to the next document, and a "
        "GPU replays recorded steps; batch_size is the number of slots. auto: continuous on a GPU, with up "
        "to 256 slots as memory allows (7B on an H200: 7,840 tokens/s, generate 1,090), else generate. "
        "Architectures that continuous does not support use generate.",
    )
    devices: int = Field(
        1,
        gt=0,
        title="Devices",
        description="Processes on this machine that share the batches, each with its own GPU where there "
        "are GPUs. Neither the order of the summaries nor any batch depends on it.",
    )
    cluster: str | None = Field(
        None,
        title="Cluster",
        description="dask or ray: the batches go to that many Prefect tasks (devices) on workers of a "
        "cluster, which starts on this machine and ends with the evaluation; or of a running one, by its "
        "address: dask:tcp://HOST:8786, ray:ray://HOST:10001. None: processes of this machine.",
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        title="Stop strings",
        description="Generation ends at any of these texts, and at end-of-text. None by default: the "
        "adapter learns to write end-of-text.",
    )
    words: Literal["auto", "latin", "unicode", "characters"] = Field(
        "auto",
        title="Words",
        description="What ROUGE counts as a word. latin: runs of a-z and 0-9, English stemmed, equal to "
        "rouge_score. unicode: runs of letters and digits of any script, and single characters of those "
        "written without spaces. characters: every letter. auto: latin where less than 0.5% of the "
        "references' letters are outside a-z, as in English, else unicode.",
    )
    references: Literal["best", "mean", "first"] = Field(
        "best",
        title="Several references",
        description="Which score a row with several references gets. best: the highest of each ROUGE, since "
        "they are alternatives. mean: of all. first: the first alone, as DialogSum's authors report.",
    )
    fresh: str | None = Field(
        None,
        min_length=1,
        title="Fresh data",
        description="Labelled rows newer than the evaluation data, in the same columns and forms; the "
        "champion is scored on them to see whether it has decayed. None: decay is not measured.",
    )
    max_decay: Share = Field(
        0.01,
        title="Largest decay",
        description="A champion whose primary metric on fresh data is worse by more than this, beyond "
        "doubt (a loss: higher, in nats a token), is retrained. 0.01 is one ROUGE point, twice the "
        "guardrail margin, since other documents vary more; of a loss it is 1% of perplexity.",
    )

    @field_validator("cluster")
    @classmethod
    def _is_a_cluster(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(CLUSTER, value):
            raise ValueError(
                "write dask or ray for a cluster of this machine, or one with its address, as in "
                "dask:tcp://host:8786 or ray:ray://host:10001"
            )
        return value


class Gate(Settings):
    """When a challenger may succeed the champion."""

    metric: MetricName = Field(
        "rougeL",
        title="Primary metric",
        description="What a challenger must be better in. ROUGE F1 of the outputs; rougeL needs the words "
        "in order. loss: held-out loss of the references, in nats a token, lower is better, for tasks "
        "where a good answer need not share the reference's words.",
    )
    min_delta: float = Field(
        0.0,
        ge=0,
        lt=1,
        title="Least gain",
        description="The gain's lower bound must exceed this, in the metric's unit; of a loss, the fall in "
        "nats a token. 0: any gain that is surely one.",
    )
    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        title="Alpha",
        description="Chance that the one-sided lower bound is above the true gain: 0.05 is a 95% bound.",
    )
    feedback: Literal["sealed", "open"] = Field(
        "sealed",
        title="What is shown of the evaluation rows",
        description="sealed: scores, examples and plots of the open part alone; of the deciding rows only "
        "the verdict is told until a promotion. A person who keeps what measured better learns from numbers: "
        "of series of 48 challengers without any gain one in four promoted one. open: all rows decide and "
        "are shown.",
    )
    open_share: float = Field(
        0.3,
        gt=0,
        lt=1,
        title="Open share",
        description="Share of the evaluation documents in the open part, by a hash of the document; "
        "near-copies stay together. 0.3 of 500 rows shows the better of two settings that differ by 0.010 "
        "in 89% of cases, and a gain of 0.010 is promoted in 59%, in place of 72%. Not used where "
        "data.open_evaluation is named.",
    )
    looks: Literal["correct", "count"] = Field(
        "correct",
        title="Repeated looks",
        description="correct: the k-th challenger judged on one evaluation set is held to alpha/k^2, since "
        "each look is one more chance to be lucky: of twenty equal models one is promoted in two cases "
        "of three at 5% each, and in at most one of twelve so. count: looks are counted and shown.",
    )
    guardrail_margin: float = Field(
        0.005,
        ge=0,
        title="Guardrail margin",
        description="No other ROUGE may be measured worse than the champion's by more than this. Half a "
        "ROUGE point, about the standard error of 500 rows (0.006): a real loss is refused, and not noise.",
    )
    max_unfinished_rise: Share = Field(
        0.05,
        title="Largest rise in unfinished outputs",
        description="By how much the share of outputs cut off at max_new_tokens may exceed the champion's: "
        "a summary that is cut off reads as broken, whatever its ROUGE.",
    )
    max_empty_share: Share = Field(
        0.01,
        title="Largest share of empty outputs",
        description="Of outputs without any letter or digit. With more the challenger is refused: such a "
        "summary is useless, and a mean hides it.",
    )
    max_same_share: Share = Field(
        0.1,
        title="Largest share of outputs that are alike",
        description="Of outputs that say what outputs for other documents say, where the references "
        "differ: a phrase that fits every document can gain ROUGE over a weak opponent.",
    )
    max_repeating_rise: Share = Field(
        0.1,
        title="Largest rise in outputs that repeat themselves",
        description="By how much the share of outputs of which half the phrases stood there before may "
        "exceed the champion's. A model that learned little loops in some; one in ten is too many to serve.",
    )
    max_copied_rise: Share = Field(
        0.1,
        title="Largest rise in copied outputs",
        description="By how much the share of outputs that only copy runs of their document may exceed "
        "the champion's, where the references do not copy: ROUGE likes long quotations.",
    )
    max_invented_rise: Share = Field(
        0.1,
        title="Largest rise in outputs with invented numbers or names",
        description="By how much the share of outputs with a number or a name that neither their document "
        "nor a reference holds may exceed the champion's. Two equal models that both invent in one of ten "
        "of 200 outputs differ by more in less than 1 of 1,000 cases.",
    )
    nli_model: str | None = Field(
        None,
        min_length=1,
        title="NLI model",
        description="Folder of a classifier of natural language inference (safetensors; a label says "
        "entail), on the machine that runs the flow. The mean chance that an output's sentences follow from "
        "the document is then shown beside ROUGE (SummaC-ZS; docs/gate.md). None: not computed.",
    )
    max_nli_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        title="Largest drop in NLI",
        description="By how much NLI may be measured worse than the champion's. Needs nli_model. None: it is "
        "shown and vetoes nothing, since such a classifier errs too.",
    )
    bertscore_model: str | None = Field(
        None,
        min_length=1,
        title="BERTScore model",
        description="Folder of an encoder (safetensors), on the machine that runs the flow. BERTScore F1 of "
        "outputs and references, without rescaling, is then shown beside ROUGE. None: not computed.",
    )
    bertscore_layer: int | None = Field(
        None,
        ge=1,
        title="BERTScore layer",
        description="The layer whose vectors are compared. Its authors take 17 of roberta-large, 9 of "
        "bert-base-uncased. None: three quarters of the model's layers.",
    )
    max_bertscore_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        title="Largest drop in BERTScore",
        description="By how much BERTScore may be measured worse than the champion's. Needs bertscore_model. "
        "None: it is shown and vetoes nothing.",
    )
    max_lost_share: Share = Field(
        0.02,
        title="Largest share of documents that lose much",
        description="How many more of the documents may lose over 0.3 ROUGE than gain as much: a mean hides "
        "a few bad failures. It stops 4% of equal models at 50 rows, and under 1% from 200.",
    )
    length_ratio: tuple[float, float] = Field(
        (0.5, 2.0),
        title="Length ratio",
        description="Bounds of the outputs' words over the references' words. Outside half to twice their "
        "length a model trades precision for recall, or recall for precision.",
    )
    slices: tuple[Column, ...] = Field(
        (),
        title="Slices",
        description="Parts of the evaluation set on which the gain is shown too: by each value of a column "
        "of the data (topic). length: documents in thirds by their words. language: by the script of their "
        "letters. source: by the file, or by a column of that name. column:length is a column that is called "
        "length. Bounds hold for all slices at once, so that many slices do not make false alarms. None by "
        "default: a mean decides.",
    )
    slice_loss: Literal["report", "veto"] = Field(
        "report",
        title="Loss on a slice",
        description="report: a slice on which the challenger is worse by more than noise stands in the "
        "decision's notes. veto: it refuses the challenger.",
    )
    approval: Literal["none", "required"] = Field(
        "none",
        title="Approval",
        description="required: a challenger that passed the gate is registered once a person approves it, in "
        "the form of the run that waits in Prefect, with twenty blind pairs to compare; precis run asks at "
        "the terminal. none: the gate alone decides, so that schedules need nobody.",
    )
    approval_timeout_days: float = Field(
        7.0,
        gt=0,
        le=365,
        title="Time for approval (days)",
        description="A challenger that nobody approved for so long is refused. A week: a person on leave, or "
        "a holiday, does not decide; after it the champion has most often new data to be compared on.",
    )
    bootstrap_samples: int = Field(
        10_000,
        ge=1_000,
        le=1_000_000,
        title="Bootstrap samples",
        description="Least number of resamples of the evaluation documents, from which bounds are read; late "
        "looks (alpha/k^2) draw more where theirs need it. 10,000 take seconds.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        title="Bootstrap seed",
        description="Fixed, so that the same scores always give the same verdict.",
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Gate:
        low, high = self.length_ratio
        if not 0 <= low < high:
            raise ValueError(
                f"length_ratio is [low, high] with 0 <= low < high, not [{low}, {high}]"
            )
        return self

    @model_validator(mode="after")
    def _models_are_named(self) -> Gate:
        needs = {
            "max_nli_drop": "nli_model",
            "max_bertscore_drop": "bertscore_model",
            "bertscore_layer": "bertscore_model",
        }
        unused = [
            f"{name} needs {model}, the folder of a model; name one or remove {name}"
            for name, model in needs.items()
            if getattr(self, name) is not None and getattr(self, model) is None
        ]
        if unused:
            raise ValueError("; ".join(unused))
        return self


class Registration(Settings):
    """What a promoted version is made of."""

    kind: Literal["merged", "adapter"] = Field(
        "merged",
        alias="as",
        title="Register as",
        description="merged: the whole model, which needs nothing else. adapter: the adapter, and the name "
        "and digest of the dequantized base that it belongs to, which is stored once for all adapters on "
        "it; engines with LoRA serve many of them at once, and MLflow and precis make the judged model of "
        "both, bit for bit.",
    )


class Recipe(Settings):
    """Everything one retraining run needs."""

    name: str = Field(
        title="Registered model",
        description="Name in the MLflow registry; its alias 'champion' is what users serve. A recipe with "
        "another name starts a history of its own.",
        pattern=NAME,
        max_length=200,
    )
    data: Data = Field(title="Data")
    base: Base = Field(title="Base model")
    prompt: Prompt = Field(default=Prompt(), title="Prompt")
    adapter: Adapter = Field(default=Adapter(), title="Adapter")
    training: Training = Field(default=Training(), title="Training")
    merge: Merge = Field(default=Merge(), title="Merge")
    evaluation: Evaluation = Field(default=Evaluation(), title="Evaluation")
    gate: Gate = Field(default=Gate(), title="Gate")
    # "register" is an attribute of every class that pydantic makes.
    registration: Registration = Field(default=Registration(), alias="register", title="Register")

    @model_validator(mode="after")
    def _engines_add_no_dora(self) -> Recipe:
        if self.registration.kind == "adapter" and self.adapter.kind == "dora":
            raise ValueError(
                "register.as: adapter is for engines that add LoRA to a base, and none of them adds "
                "adapter.kind: dora; set register.as: merged, or adapter.kind: lora or rslora"
            )
        return self

    @model_validator(mode="after")
    def _open_rows_do_not_decide(self) -> Recipe:
        if self.data.open_evaluation is not None and self.gate.feedback == "open":
            raise ValueError(
                "data.open_evaluation names rows that do not decide, and gate.feedback: open shows the "
                "deciding rows too; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _no_credentials(self) -> Recipe:
        values = self.model_dump(exclude={"prompt"}, exclude_defaults=True)
        if found := credentials.places(values):
            raise ValueError(
                f"{', '.join(found)} {'hold' if len(found) > 1 else 'holds'} a password, token or key, and a "
                "recipe is stored with every run; take it out and put it into the environment of the machine "
                "that runs (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, HF_TOKEN, MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD)"
            )
        return self

    @model_validator(mode="after")
    def _system_messages_have_a_place(self) -> Recipe:
        named = self.data.fields.system or self.data.fields_of_evaluation.system
        if named and self.prompt.format == "template":
            raise ValueError(
                f"data.fields.system names {named}, and prompt.format template has no system message: set "
                "prompt.format: chat, or make the column one of data.fields.inputs, with a place in "
                "prompt.template"
            )
        return self

    @model_validator(mode="after")
    def _template_has_a_place_for_each_text(self) -> Recipe:
        prompt, inputs = self.prompt, list(self.data.fields.inputs or ())
        if prompt.format == "chat" and prompt.has_own_template and not inputs:
            raise ValueError(
                "prompt.template is used with format: chat only for data.fields.inputs; put the "
                "instruction in system"
            )
        if prompt.format == "chat" and not prompt.has_own_template:
            return self
        if doubled := template_places.doubled(prompt.template, inputs or ["document"]):
            raise ValueError(
                f"prompt.template holds {doubled}, whose outer braces would stay in every prompt; write "
                f"{doubled[1:-1]}"
            )
        if not inputs:
            if prompt.template.count("{document}") != 1:
                raise ValueError("prompt.template must hold {document} exactly once")
            return self
        if problems := template_places.problems_of(prompt.template, inputs):
            places = ", ".join(f"{{{name}}}" for name in inputs)
            own = "" if prompt.has_own_template else " (it is the default)"
            raise ValueError(
                f"prompt.template{own} must hold {places} exactly once each, as data.fields.inputs "
                f"names them: {'; '.join(problems)}"
            )
        return self

    @model_validator(mode="after")
    def _parts_of_one_document(self) -> Recipe:
        if self.prompt.summarize == "map_reduce" and self.data.fields.inputs:
            raise ValueError(
                "prompt.summarize map_reduce reads one document in parts, and data.fields.inputs makes a "
                "prompt of several texts: choose summarize direct, or name one document"
            )
        return self
