"""The way of a recalibration in the daemon's own process.

To follow one, read drift_monitor, state_machine, controller and job here; client, ipc, main, fit_job, context and
dossier_builder in daemon/worker; fitting and judge in calibrate; store/artefacts and path in deploy; and
state/audit_writer in daemon.
"""
