"""The tables of Willis & Oala (2021)."""
