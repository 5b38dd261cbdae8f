"""Pattern updates of Algorithm 1: schedules, growth rules, the updater and what it measures."""
