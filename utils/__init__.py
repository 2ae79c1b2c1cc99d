"""Machinery shared by every layer; imports nothing of ours outside this package."""
