"""Puts the gateway before upstream in containerd's mirror files, and takes it out again."""
