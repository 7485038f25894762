"""Plans: what a run will cost, by arithmetic on the shapes of its network; nothing is computed, read or started."""
