"""What Night School learns: reward model, PPO, gate, publication."""
