"""Modules for users' own networks."""

from fastprune.nn.channel_select import ChannelSelect

__all__ = ["ChannelSelect"]
