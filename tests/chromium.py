"""A Chromium without window, over its debugging pipe, for tests of pages."""

import json
import os
import select
import shutil
import subprocess
import time

EXECUTABLE = next(filter(None, map(
    shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)

_SECONDS = 60  # For any answer.

# Nothing of the user's is read or written, and the browser itself asks nobody.
_OPTIONS = ('--headless', '--no-sandbox', '--disable-gpu', '--no-first-run',
            '--disable-background-networking', '--disable-component-update',
            '--disable-sync', '--disable-quic', '--disable-dev-shm-usage',
            '--remote-debugging-pipe')


class Chromium:
  """One page. Its requests, console messages and exceptions are in `events`."""

  def __init__(self, profile_folder):
    to_browser, self._to_browser = os.pipe()
    self._from_browser, from_browser = os.pipe()
    # The browser reads from file 3 and writes to file 4.
    self._process = subprocess.Popen(
        ['bash', '-c', f'exec "$@" 3<&{to_browser} 4>&{from_browser}', 'bash',
         EXECUTABLE, *_OPTIONS, f'--user-data-dir={profile_folder}',
         'about:blank'],
        pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL)
    os.close(to_browser)
    os.close(from_browser)
    self._received = b''
    self._num_sent = 0
    self._session = {}
    self.events = []
    page = next(target for target in self.send('Target.getTargets')[
        'targetInfos'] if target['type'] == 'page')
    self._session = {'sessionId': self.send(
        'Target.attachToTarget', targetId=page['targetId'],
        flatten=True)['sessionId']}
    for domain in ('Page', 'Network', 'Log', 'Runtime'):
      self.send(domain + '.enable')

  def __enter__(self):
    return self

  def __exit__(self, *_):
    os.close(self._to_browser)  # It ends with the pipe.
    self._process.wait(10)
    os.close(self._from_browser)

  def send(self, method, **parameters):
    """The result of a command of the DevTools protocol."""
    self._num_sent += 1
    message = dict(self._session, id=self._num_sent, method=method,
                   params=parameters)
    os.write(self._to_browser, json.dumps(message).encode() + b'\0')
    while True:
      answer = self._receive()
      if answer.get('id') == self._num_sent:
        assert 'error' not in answer, answer
        return answer['result']

  def _receive(self):
    deadline = time.time() + _SECONDS
    while b'\0' not in self._received:
      ready, _, _ = select.select(
          [self._from_browser], [], [], max(0, deadline - time.time()))
      chunk = ready and os.read(self._from_browser, 1 << 16)
      assert chunk, f'no answer from {EXECUTABLE}'
      self._received += chunk
    message, self._received = self._received.split(b'\0', 1)
    message = json.loads(message.decode())
    if 'method' in message:
      self.events.append(message)
    return message

  def open(self, path):
    """Opens a file and waits until it is there."""
    self.send('Page.navigate', url='file://' + path)
    while not self.events_of('Page.loadEventFired'):
      self._receive()

  def evaluate(self, expression):
    """The value of a JavaScript expression in the page."""
    result = self.send('Runtime.evaluate', expression=expression,
                       returnByValue=True, userGesture=True)
    assert 'exceptionDetails' not in result, result
    return result['result'].get('value')

  def events_of(self, *methods):
    return [event['params'] for event in self.events
            if event['method'] in methods]
