"""TRQ at full scale: train OSEDiff for another timestep, by its own losses or by a cheaper distillation."""
