"""Pattern updates of Algorithm 1, around any model and optimizer: schedules, growth rules, the updater."""
