//! The whole module at work: rows go in, verdicts come out.
