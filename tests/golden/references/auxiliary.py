"""Auxiliary losses, from torch's own functions in float64."""

import torch
import torch.nn.functional as F


def info_nce(inputs, options):
    keys = inputs["positives"]
    if "negatives" in inputs:
        keys = torch.cat([keys, inputs["negatives"]])
    scores = F.normalize(inputs["anchors"]) @ F.normalize(keys).T / options.get("temperature", 0.07)
    return F.cross_entropy(scores, torch.arange(len(scores)), reduction="none")


REFERENCES = {"info_nce_loss": info_nce}
