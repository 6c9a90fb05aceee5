"""Score models that were trained on synthetic tasks, beside what each row allows to guess."""
