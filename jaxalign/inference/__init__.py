"""Models that answer: a folder, GGUF file, run, or patient with doctors becomes a `ChatModel`, which reads prompts."""

from jaxalign.inference.generate import GenerateConfig, generate
from jaxalign.inference.loading import ChatModel, load_speaker

__all__ = ["ChatModel", "GenerateConfig", "generate", "load_speaker"]
