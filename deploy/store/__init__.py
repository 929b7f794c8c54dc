"""What is kept on the disk: homogenizer artefacts, retention, dossiers, and their verification."""
