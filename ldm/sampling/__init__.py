"""Sampling: where the noise levels lie, the samplers, the reverse process, guidance and likelihood."""
