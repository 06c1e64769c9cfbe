"""Answers judged by a model: AlpacaEval, MT-bench, and judges behind an endpoint, a reward model or a chat model."""
