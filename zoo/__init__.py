"""The check of every stock config of mmseg and mmpretrain."""
