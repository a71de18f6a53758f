"""Plan, graphs, run accounting, publishing and tracking. The only room that knows ray, deepspeed and mlflow."""
