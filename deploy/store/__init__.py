"""The state directory: homogenizer artefacts and pointers, retention, dossiers, and the check of every byte."""
