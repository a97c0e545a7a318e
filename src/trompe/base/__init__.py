"""What every part stands on: texts and registries, processes, progress, memory."""
