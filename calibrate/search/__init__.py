"""The search for a homogenizer: closed-form starts, the objective, and the descent on it."""
