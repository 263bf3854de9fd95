"""README and docs/: what they link to and what they tell to run is there."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / 'README.md'] + sorted((ROOT / 'docs').glob('*.md'))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_files_are_there(page):
  text = page.read_text(encoding='utf-8')
  for target, anchor in re.findall(r'\]\((?!http)([^)#]*)#?([^)]*)\)', text):
    linked = page.parent / target if target else page
    assert linked.exists(), target
    if anchor:
      headings = re.findall(r'^#+ (.*)$', linked.read_text(encoding='utf-8'),
                            re.M)
      assert anchor in [re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-')
                        for heading in headings], anchor
  for name in re.findall(
      r'\b(?:(?:tests|benchmarks|docs|cascade|Imagenet|Imagenet_tools)/[\w/]+|'
      r'analyze_\w+|run_\w+|setup_env)\.(?:py|sh|md)\b', text):
    assert any((room / name).exists() for room in (
        ROOT, ROOT / 'Imagenet', ROOT / 'benchmarks')), name


def test_the_tests_that_reproduction_names_exist():
  text = (ROOT / 'docs' / 'reproduction.md').read_text(encoding='utf-8')
  for name, word in re.findall(r'(tests/\w+\.py)(?: -k (\w+))?`', text):
    functions = re.findall(r'^def (test_\w+)', (ROOT / name).read_text(
        encoding='utf-8'), re.M)
    assert any(not word or word in function for function in functions), name
