"""Runs a Python script as two workers of TF_CONFIG on this machine."""

import json
import os
import socket
import subprocess
import sys

NUM_WORKERS = 2
_SECONDS = 300  # Longer is a failure, on a busy machine too.


def free_ports(count):
  """Ports on which nothing listens now; different ones."""
  probes = [socket.socket() for _ in range(count)]
  for probe in probes:
    probe.bind(('127.0.0.1', 0))
  ports = [probe.getsockname()[1] for probe in probes]
  for probe in probes:
    probe.close()
  return ports


def tf_config(ports, index):
  """The text of TF_CONFIG for the worker `index`."""
  return json.dumps({
      'cluster': {'worker': ['127.0.0.1:{}'.format(port) for port in ports]},
      'task': {'type': 'worker', 'index': index}})


def run(output_dir, script, *args, **kwargs):
  """Runs `python SCRIPT ARGS` as two workers and waits for their end.

  Once more if another program took a port in the meantime.

  Args:
    output_dir: for the workers' output.
    script: a path.
    *args: of the command; anything `str` takes.
    **kwargs: `meanwhile`: a function of the two `subprocess.Popen`, called
      while they run.

  Returns:
    A list of (exit status, output) of the workers, the chief's first.
  """
  results = _run_once(output_dir, script, args, **kwargs)
  if any('TF_CONFIG: port' in output for _, output in results):
    results = _run_once(output_dir, script, args, **kwargs)
  return results


def _run_once(output_dir, script, args, meanwhile=lambda workers: None):
  ports = free_ports(NUM_WORKERS)
  paths = [os.path.join(str(output_dir), 'output{}.txt'.format(i))
           for i in range(NUM_WORKERS)]
  workers = []
  try:
    for index, path in enumerate(paths):
      with open(path, 'w') as stream:
        workers.append(subprocess.Popen(
            [sys.executable, str(script)] + [str(arg) for arg in args],
            env=dict(os.environ, TF_CONFIG=tf_config(ports, index)),
            stdin=subprocess.DEVNULL, stdout=stream,
            stderr=subprocess.STDOUT))
    meanwhile(workers)
    statuses = [worker.wait(timeout=_SECONDS) for worker in workers]
  finally:
    for worker in workers:
      if worker.poll() is None:
        worker.kill()
        worker.wait()
  outputs = []
  for path in paths:
    with open(path) as stream:
      outputs.append(stream.read())
  return list(zip(statuses, outputs))
