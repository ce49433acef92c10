"""One file per task: the loss, the success metrics and how an output is drawn."""
