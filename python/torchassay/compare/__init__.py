"""Comparisons of sampling methods at equal budgets: the papers' claims on a data set of your own."""
