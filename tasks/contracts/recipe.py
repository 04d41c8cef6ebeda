"""Recipe: everything a run needs to know, and the only place where a default is written.

The Prefect UI builds its form from these titles and descriptions; names are the ones PEFT, TRL and
MLflow use. A YAML recipe holds only what differs from here.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MetricName = Literal["rouge1", "rouge2", "rougeL", "rougeLsum", "loss"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # fit for MLflow's names, its filters, and file names
Share = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
CLUSTER = r"(dask(:[a-z]+://[^\s/]+:\d+)?|ray(:ray://[^\s/]+:\d+)?)"


class Settings(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


class Fields(Settings):
    """Which column of the input holds what. All empty: guessed from the usual names, and shown."""

    document: str | None = Field(
        None, title="Document column", description="The text to summarize."
    )
    summary: str | Names | None = Field(
        None,
        title="Summary column(s)",
        description="The reference summary; several columns are several references of one document.",
    )
    id: str | None = Field(None, title="Id column", description="A row's own name, if it has one.")
    text: str | None = Field(
        None,
        title="Chat column",
        description="One column that holds a conversation ([INST] question [/INST] answer, or a list "
        "of messages), in place of the document and summary columns.",
    )

    @model_validator(mode="after")
    def _one_form(self) -> Fields:
        if self.text and (self.document or self.summary):
            raise ValueError("text stands in place of document and summary: name one or the other")
        return self


class Data(Settings):
    """Where rows come from and how many are used."""

    train: str = Field(
        title="Training data",
        description="A file (JSONL, JSON, CSV, Parquet), a folder of them, s3://bucket/key, or "
        "hub:owner/name for a dataset of the Hugging Face hub.",
        min_length=1,
    )
    evaluation: str | None = Field(
        None,
        title="Evaluation data",
        description="Same forms. None: a share of the training data, chosen by a hash of the "
        "document, so that it is stable when data grow.",
    )
    fields: Fields = Field(default=Fields(), title="Columns")
    train_rows: int | None = Field(
        None, gt=0, title="Training rows", description="Use the first N."
    )
    evaluation_rows: int | None = Field(
        None, gt=0, title="Evaluation rows", description="Use the first N."
    )
    evaluation_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        title="Evaluation share",
        description="Share of documents held out where no evaluation data are named.",
    )
    min_new_rows: int = Field(
        100,
        gt=0,
        title="New rows for a retrain",
        description="When data arrive, a retrain starts from this many rows that the champion has "
        "not seen.",
    )
    revision: str | None = Field(
        None, title="Hub revision", description="Commit of a hub dataset; needed for hub: sources."
    )
    train_split: str = Field("train", title="Hub split for training")
    evaluation_split: str = Field("validation", title="Hub split for evaluation")
    # A real set loses a row in a thousand to encoding accidents; one in a hundred means that the
    # file or the column names are wrong.
    max_rejected_share: Share = Field(
        0.01,
        title="Largest share of rejected rows",
        description="Over this share of unusable rows the flow stops.",
    )
    # Below 0.8 five-word shingles start to match different dialogues that share a form (ordering
    # food, checking in); above it, edits of one dialogue slip through.
    near_duplicate_jaccard: Share = Field(
        0.8,
        title="Near-duplicate similarity",
        description="Training documents at least this similar (Jaccard of word 5-grams, by "
        "MinHash) to an evaluation document are dropped from training.",
    )


class Base(Settings):
    """The model that is tuned."""

    model: str = Field(
        title="Base model",
        description="A local folder in Hugging Face format, or a hub name.",
        min_length=1,
    )
    revision: str | None = Field(
        None, title="Hub revision", description="Commit of a hub model; needed for hub names."
    )
    quantization: Literal["nf4", "fp4", "int8", "none"] = Field(
        "nf4",
        title="Quantization in training",
        description="How the frozen weights rest. nf4: QLoRA (4-bit NormalFloat, double quantization). "
        "fp4: 4-bit floats, likewise. int8: 8 bits, a scale a row. none: in full.",
    )
    context_tokens: int | None = Field(
        None,
        gt=0,
        title="Context (tokens)",
        description="The most tokens of prompt and summary together. Past the base's own maximum it "
        "needs rope; up to it, it only limits. None: the base's own maximum.",
    )
    rope: Literal["ntk", "linear", "dynamic", "yarn"] | None = Field(
        None,
        title="RoPE scaling",
        description="How positions are scaled to context_tokens, in training, evaluation and serving. "
        "ntk: fixed, every server computes the same. dynamic: by each text's length; documents are "
        "summarized one by one. None: not at all.",
    )

    @model_validator(mode="after")
    def _scales_to_something(self) -> Base:
        if self.rope and self.context_tokens is None:
            raise ValueError(
                f"rope is {self.rope}, but context_tokens is not set: say how many tokens to scale to"
            )
        return self


class Prompt(Settings):
    """How a document becomes the model's input: in training, evaluation and serving alike."""

    format: Literal["template", "chat"] = Field(
        "template",
        title="Form",
        description="template: the document stands in the prompt below. chat: it is the user's "
        "message, or a conversation up to its last question, in the model's own chat template.",
    )
    template: str = Field(
        "Summarize the following conversation.\n\n{document}\n\nSummary: ",
        title="Prompt",
        description="Text with {document} in it, once. Not used by chat.",
    )
    system: str | None = Field(
        None,
        min_length=1,
        title="System message",
        description="For chat: said to the model before every conversation that has none of its own.",
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        title="Chat template",
        description="For chat: llama-2, a file with a Jinja template, or the template itself. None: "
        "that of the base's tokenizer.",
    )
    max_source_tokens: int | None = Field(
        None,
        gt=0,
        title="Longest prompt (tokens)",
        description="Prompts are cut to this. None: what the context leaves beside max_new_tokens.",
    )
    truncate: Literal["tail", "head", "middle", "error"] = Field(
        "tail",
        title="Cut from",
        description="Which part of a too long document is dropped; error: such rows are rejected.",
    )
    summarize: Literal["direct", "map_reduce"] = Field(
        "direct",
        title="Documents that do not fit",
        description="direct: they are cut. map_reduce: their parts are summarized, then the summaries "
        "of the parts together; in evaluation and serving (training cuts them, as the loss does).",
    )

    @model_validator(mode="after")
    def _holds_the_document(self) -> Prompt:
        if self.template.count("{document}") != 1:
            raise ValueError("template must hold {document} exactly once")
        return self

    @model_validator(mode="after")
    def _parts_or_rejects(self) -> Prompt:
        if self.summarize == "map_reduce" and self.truncate == "error":
            raise ValueError(
                "summarize map_reduce takes documents that do not fit and truncate error rejects "
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
            raise ValueError(
                "system and chat_template are of format: chat; set that, or remove them"
            )
        if self.format == "chat" and self.template != type(self).model_fields["template"].default:
            raise ValueError("template is not used by format: chat; say in system what is wanted")
        return self


class Adapter(Settings):
    """The adapter, in PEFT's terms."""

    # Sources: LoRA, Hu et al. 2021, arXiv:2106.09685; DoRA, Liu et al. 2024, arXiv:2402.09353;
    # rsLoRA, Kalajdzievski 2023, arXiv:2312.03732.
    kind: Literal["lora", "dora", "rslora"] = Field(
        "lora",
        title="Kind",
        description="lora: W + alpha/r BA. rslora: W + alpha/sqrt(r) BA, for high ranks. dora: rows' "
        "lengths are learned apart from their directions; slower, needs more memory.",
    )
    r: int = Field(16, gt=0, title="Rank")
    lora_alpha: float = Field(
        32, gt=0, title="Alpha", description="Scale: alpha / r (rslora: alpha / sqrt(r))."
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, title="Dropout")
    target_modules: Literal["all-linear"] | Names = Field(
        "all-linear", title="Target modules", description="all-linear, or module name endings."
    )


class Training(Settings):
    """Fine-tuning, in TRL's and transformers' terms."""

    num_train_epochs: float = Field(1.0, gt=0, title="Epochs")
    max_steps: int = Field(-1, ge=-1, title="Most steps", description="-1: the epochs decide.")
    learning_rate: float = Field(2e-4, gt=0, title="Learning rate")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", title="Schedule"
    )
    warmup_steps: float = Field(
        0.03, ge=0, title="Warm-up", description="Steps; below 1, a share of all steps."
    )
    per_device_train_batch_size: int = Field(
        2, gt=0, title="Micro-batch", description="Packed sequences a device and step."
    )
    gradient_accumulation_steps: int = Field(1, gt=0, title="Gradient accumulation")
    # No "auto": how many there are would change the global batch, and with it the weights.
    devices: int = Field(
        1,
        gt=0,
        title="Devices",
        description="GPUs of a machine that train together, each with rows of its "
        "own. A step learns micro-batch x accumulation x devices x machines sequences, as in "
        "transformers: with twice the devices, half the accumulation is the same step.",
    )
    nodes: int = Field(
        1,
        gt=0,
        title="Machines",
        description="Machines with that many devices each. Where they meet is torchrun's to know: its "
        "variables PET_RDZV_ENDPOINT or PET_MASTER_ADDR (docs/devices.md).",
    )
    max_length: int = Field(
        1024, gt=0, title="Sequence length (tokens)", description="Rows are packed up to this."
    )
    packing: bool = Field(True, title="Pack rows", description="Rows never see each other.")
    optim: Literal[
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_bnb_8bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "adafactor",
        "sgd",
    ] = Field("adamw_torch", title="Optimizer")
    weight_decay: float = Field(0.0, ge=0, title="Weight decay")
    max_grad_norm: float = Field(1.0, gt=0, title="Gradient clipping")
    gradient_checkpointing: bool = Field(False, title="Checkpoint activations")
    # The function is the same in all of them, so what fits is chosen and not asked for.
    memory: Literal["auto", "resident", "none", "selective", "full", "least", "plain"] = Field(
        "auto",
        title="Memory on a GPU",
        description="auto: the fastest way that fits the free memory. resident: NF4 weights "
        "dequantized once, nothing computed again; none: weights as loaded, nothing computed again; "
        "selective: norms and activations computed again; full: all layers; least: all layers, with "
        "their inputs and the embedding in host memory. plain: TRL's own path.",
    )
    # Of several devices alone; the function and the weights learned are the same.
    base_weights: Literal["auto", "replicated", "sharded"] = Field(
        "auto",
        title="Base weights on several devices",
        description="replicated: each holds them all. sharded: each holds a part, and gathers a layer's "
        "before it computes. auto: sharded where one GPU cannot hold all and train.",
    )
    save_steps: int = Field(50, gt=0, title="Steps between checkpoints")
    logging_steps: int = Field(5, gt=0, title="Steps between log lines")
    seed: int = Field(0, ge=0, lt=2**32, title="Seed")
    timeout_hours: float = Field(48.0, gt=0, title="Time limit (hours)")
    checkpoint_store: str | None = Field(
        None,
        min_length=1,
        title="Checkpoint store",
        description="s3://bucket/prefix, or a folder that all workers see: checkpoints are kept there "
        "too, and a run goes on from them on any machine. None: this machine only.",
    )

    @model_validator(mode="after")
    def _does_a_step(self) -> Training:
        if self.max_steps == 0:
            raise ValueError("max_steps 0 trains nothing; -1 lets the epochs decide")
        return self


class Merge(Settings):
    """Folding the adapter into the weights."""

    # Measured on a toy model (design): 1.0e-4 nats of KL onto the dequantized base, 5.2e-3 onto
    # the original; the adapter was trained against the rounded weights.
    onto: Literal["quantized_base", "original_base"] = Field(
        "quantized_base", title="Merge onto", description="The dequantized base, or the original."
    )
    # 1e-2 nats is ten times what bf16 rounding costs and far below what tuning changes.
    max_kl: float = Field(
        1e-2, gt=0, title="Largest drift (KL, nats a token)", description="Merged against adapter."
    )
    # Near-ties flip under rounding: about one token in a hundred at most.
    min_top1_agreement: Share = Field(0.98, title="Least top-1 agreement")
    drift_rows: int = Field(16, gt=0, title="Rows in the drift check")


class Evaluation(Settings):
    """How summaries are written for the gate, and by the served model."""

    max_new_tokens: int = Field(128, gt=0, title="Longest summary (tokens)")
    batch_size: int = Field(16, gt=0, title="Documents a batch")
    kv_cache: Literal["device", "offloaded"] = Field(
        "device",
        title="Keys and values",
        description="Where those of the text under way rest, in evaluation and serving. offloaded: in "
        "main memory, but for the layer at work; slower, and long documents fit a small GPU.",
    )
    # On an H200, 7B: generate at batch 64 1,090 tokens/s, continuous 7,840; on a CPU the same speed.
    decoding: Literal["auto", "generate", "continuous"] = Field(
        "auto",
        title="Decoding",
        description="How documents are written together. generate: batch by batch, each padded to its "
        "longest, by transformers. continuous: who ends makes room for the next, and a GPU runs recorded "
        "steps; batch_size is then how many are under way. auto: continuous on a GPU, up to 256 under "
        "way as memory allows, else generate. Models that it does not know are written by generate.",
    )
    devices: int = Field(
        1,
        gt=0,
        title="Devices",
        description="Batches are dealt out to so many processes on this machine, each with a GPU of its "
        "own where there are GPUs. Summaries keep their order and, batch for batch, what they are.",
    )
    cluster: str | None = Field(
        None,
        title="Cluster",
        description="dask or ray: the shares of devices are Prefect tasks on that many workers, of a "
        "cluster that starts on this machine and ends with the evaluation; or of one that is there, by "
        "its address: dask:tcp://HOST:8786, ray:ray://HOST:10001. None: processes of this machine.",
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        title="Stop strings",
        description="Generation ends at any of these, besides end-of-text.",
    )
    fresh: str | None = Field(
        None,
        min_length=1,
        title="Fresh data",
        description="Labelled rows newer than the evaluation data, in the same columns; the champion "
        "is scored on them to see whether it has decayed.",
    )
    # One ROUGE point: twice the guardrails' margin, as other documents vary more than one set does.
    # Of a loss it is 1% of perplexity.
    max_decay: Share = Field(
        0.01,
        title="Largest decay",
        description="A champion whose primary metric on fresh data is surely worse by more than this "
        "(of a loss: higher, in nats a token) is retrained.",
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
        description="ROUGE F1 of the outputs, or loss: held-out loss of the references, in nats a "
        "token, lower is better; for tasks where a good answer need not share the reference's words.",
    )
    min_delta: float = Field(
        0.0,
        ge=0,
        lt=1,
        title="Least gain",
        description="The gain's lower bound must exceed this; of a loss, the fall in nats a token.",
    )
    alpha: float = Field(
        0.05, gt=0, lt=0.5, title="Alpha", description="Of the one-sided lower bound: 0.05 is 95%."
    )
    # Each look at one evaluation set is one more chance to be lucky; twenty tries of equal models
    # at 5% would promote one of them in two cases of three, alpha/k^2 in one of twelve at most.
    looks: Literal["correct", "count"] = Field(
        "correct",
        title="Repeated looks",
        description="correct: the k-th challenger judged on one evaluation set is held to alpha/k^2. "
        "count: looks are only counted and shown.",
    )
    # Half a ROUGE point: below the standard error of a 500-row set (about 0.006), so that a
    # guardrail refuses a real loss and not noise in the mean.
    guardrail_margin: float = Field(
        0.005,
        ge=0,
        title="Guardrail margin",
        description="No other ROUGE may be worse than the champion's by more than this "
        "(lower bound; where loss decides, as measured).",
    )
    # A summary cut off by the token limit reads as broken, whatever its ROUGE.
    max_unfinished_rise: Share = Field(
        0.05,
        title="Largest rise in unfinished outputs",
        description="Share of outputs that hit max_new_tokens, against the champion's.",
    )
    max_empty_share: Share = Field(0.01, title="Largest share of empty outputs")
    # Outside half to twice the references' length a model is gaming recall or precision.
    length_ratio: tuple[float, float] = Field(
        (0.5, 2.0), title="Length ratio", description="Output words over reference words: bounds."
    )
    bootstrap_samples: int = Field(10_000, ge=1_000, le=1_000_000, title="Bootstrap samples")
    seed: int = Field(0, ge=0, lt=2**32, title="Bootstrap seed")

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Gate:
        low, high = self.length_ratio
        if not 0 <= low < high:
            raise ValueError(
                f"length_ratio is [low, high] with 0 <= low < high, not [{low}, {high}]"
            )
        return self


class Recipe(Settings):
    """Everything one retraining run needs."""

    name: str = Field(
        title="Registered model",
        description="Name in the MLflow registry; its alias 'champion' is what users serve.",
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
