"""Latency: measuring it, predicting it from a table of layers, and saying where it goes."""

from __future__ import annotations

from fastprune.latency.alignment import Alignment, alignment_of
from fastprune.latency.clock import Clock, DeviceClock, Setting, device_name, seconds_of
from fastprune.latency.options import MODES, LatencyOptions, Mode, mode_refusal
from fastprune.latency.profile import hardly_faster, profile, reasons
from fastprune.latency.solving import (
    LATENCY,
    TOLERANCE,
    LatencyFacts,
    latency_range,
    plan_within,
)

__all__ = [
    "LATENCY",
    "MODES",
    "TOLERANCE",
    "Alignment",
    "Clock",
    "DeviceClock",
    "LatencyFacts",
    "LatencyOptions",
    "Mode",
    "Setting",
    "alignment_of",
    "device_name",
    "hardly_faster",
    "latency_range",
    "mode_refusal",
    "plan_within",
    "profile",
    "reasons",
    "seconds_of",
]
