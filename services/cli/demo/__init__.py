"""`stafett demo`: a small cluster on this machine, in front of the user's eyes."""
