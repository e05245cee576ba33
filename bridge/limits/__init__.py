"""What a file may cost: opening it without waiting, the memory that its numbers ask for, and what a command writes."""
