"""Matches and predictions to understanding."""
