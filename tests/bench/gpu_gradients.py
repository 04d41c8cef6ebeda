"""The fast path's gradients on a GPU beside plain PEFT's in float32 on the CPU.

python tests/bench/gpu_gradients.py OUT
"""

from __future__ import annotations

import functools
import statistics
import sys
from pathlib import Path
from typing import Any


def check(folder: Path) -> None:
    """The fast path on the GPU against plain PEFT in float32 on the CPU: a small Llama and a small Phi."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1]))
    import tiny
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from tasks.costs import memory_plan
    from tasks.models import loading
    from tasks.train import attention, qlora
    from tasks.train.fast_path import setup, varlen_attention
    from tasks.train.trainer import completion_loss

    bases = {
        "llama": tiny.make_tiny_base(folder / "llama", hidden=256, tied=False),
        "phi": _small_phi(folder / "phi", tiny),
    }
    rows = tiny.write_rows(folder / "rows.jsonl", tiny.make_rows(40))
    least = memory_plan.Plan(selective=True, recomputed=2, offload=True)
    variants = [
        ("plain", None, torch.bfloat16, True),
        ("none", memory_plan.Plan(), torch.bfloat16, True),
        ("least", least, torch.bfloat16, True),
        ("no flash", memory_plan.Plan(), torch.bfloat16, False),
        ("no flash fp16", memory_plan.Plan(), torch.float16, False),
    ]
    for name, base in bases.items():
        recipe = tiny.make_recipe(base, base={"quantization": "none"})
        expected: dict[str, Any] = {}
        for title, plan, dtype, flash in variants:
            torch.backends.cuda.enable_flash_sdp(flash)
            loading.compute_dtype = lambda dtype=dtype: dtype
            setup.choose_plan = lambda *_: None
            job = folder / f"{name}-{title}".replace(" ", "-")
            trainer = qlora.build_trainer(rows, tiny.prepared(base, recipe), recipe, job)[0]
            examples = [trainer.train_dataset[i] for i in range(2)]
            batch = trainer.data_collator(examples)
            if plan:
                trainer.model.set_attn_implementation(varlen_attention.register())
                shape = setup.shape_for(trainer.model.get_base_model(), recipe)
                compiler = "inductor" if title == "none" else "aot_eager"
                assert setup.enable(trainer, (plan, shape), compiler)
            for i, p in enumerate(p for p in trainer.model.parameters() if p.requires_grad):
                made = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
                p.data.copy_(made * 0.05)
            if not expected:
                plain = AutoModelForCausalLM.from_pretrained(
                    base, dtype=torch.float32, attn_implementation=attention.register()
                )
                reference = get_peft_model(plain, qlora.lora_config(recipe)).train()
                held = trainer.model.state_dict()
                reference.load_state_dict({n: held[n].cpu() for n in reference.state_dict()})
                truth = completion_loss(reference, dict(batch))
                truth.backward()
                expected = _gradients(reference)
                print(f"check {name:6} cpu float32    loss {truth.item():.5f}", flush=True)
            if plan:
                batch = trainer.data_collator(examples)
            batch = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=plan is None):
                run = (
                    trainer.fast_path
                    if plan
                    else functools.partial(completion_loss, trainer.model.train())
                )
                loss = run(batch)
            loss.backward()
            found = _gradients(trainer.model)
            off = [float((found[n] - e).norm() / e.norm()) for n, e in expected.items()]
            print(
                f"check {name:6} {title:14} loss {loss.item():.5f}  gradients off by {max(off):.4f} at "
                f"most, median {statistics.median(off):.4f}  "
                f"compiled {trainer.fast_path.compiled if plan else '-'}",
                flush=True,
            )


def _small_phi(folder: Path, tiny: Any) -> Path:
    import torch
    from transformers import PhiConfig, PhiForCausalLM

    folder.mkdir(parents=True)
    tiny.make_tokenizer(folder)
    config = PhiConfig(
        vocab_size=512,
        hidden_size=320,
        intermediate_size=640,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        resid_pdrop=0.0,
    )
    torch.manual_seed(0)
    PhiForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _gradients(model: Any) -> dict[str, Any]:
    return {n: p.grad.float().cpu() for n, p in model.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    check(Path(sys.argv[1]))
