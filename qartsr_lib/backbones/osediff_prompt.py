"""The text embedding that the UNet attends to: by the base model's text encoder, or a file for the empty prompt."""

from __future__ import annotations

from pathlib import Path

import torch

from qartsr_lib.backbones.osediff_files import load_tensors, read_weights, weight_files
from qartsr_lib.base.errors import QartsrError

#: PassionSR's cached embedding of the empty prompt; looked for beside OSEDiff's file.
EMPTY_EMBEDDING = "empty_context_embedding.pt"


@torch.no_grad()
def embed_prompt(base: Path, prompt: str) -> torch.Tensor:
    """Last hidden state of the base model's text encoder, final normalization applied: (1, 77, 1024) float32.

    The prompt is taken as it is given; tags are separated by commas, as the tagger RAM gives them.
    A prompt of more than 77 tokens is cut.

    Args:
        base: folder with text_encoder/ and tokenizer/.

    Raises:
        QartsrError: they are missing or damaged.
    """
    # Imported here: the text encoder is needed once per prompt, and transformers takes seconds to import.
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    for part in ("text_encoder", "tokenizer"):
        if not (base / part).is_dir():
            raise QartsrError(
                f"{base / part}: missing, the prompt cannot be embedded; complete the base model's folder "
                f"(or, without a prompt, put {EMPTY_EMBEDDING} beside OSEDiff's file)"
            )
    folder = base / "text_encoder"
    state, _ = read_weights(weight_files(folder, "model.safetensors", "pytorch_model.bin"))
    try:
        tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
        config = CLIPTextConfig.from_pretrained(folder)
        encoder, report = CLIPTextModel.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = tokenizer(prompt, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
        embedding = encoder.eval()(tokens.input_ids).last_hidden_state
    except Exception as error:  # transformers and tokenizers raise many kinds for damaged files
        detail = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise QartsrError(f"{base}: text_encoder or tokenizer is damaged ({detail}); get them again") from error
    if report.get("missing_keys"):
        raise QartsrError(f"{base / 'text_encoder'}: key {sorted(report['missing_keys'])[0]} is missing; get it again")
    return embedding


def empty_embedding(path: Path, width: int) -> torch.Tensor:
    """The cached embedding of the empty prompt in a torch file: (1, tokens, `width`) float32.

    Raises:
        QartsrError: damaged, or of another shape.
    """
    found = load_tensors(path)
    if not isinstance(found, torch.Tensor) or found.ndim not in (2, 3) or found.shape[-1] != width:
        raise QartsrError(f"{path}: no text embedding of width {width}; remove the file or get it again")
    return found.float().reshape(1, -1, width)
