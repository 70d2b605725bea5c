# Written by simclr-hub: moves NUMBER copies out of photo folders. Read it first; nothing is deleted.
#   powershell -NoProfile -ExecutionPolicy Bypass -File THIS          moves them
#   powershell -NoProfile -ExecutionPolicy Bypass -File THIS check    tells what would be moved, and moves nothing
#   powershell -NoProfile -ExecutionPolicy Bypass -File THIS undo     moves back what was moved
# (pwsh in place of powershell for PowerShell 7. Windows PowerShell refuses paths of 260 letters and more.)
# A file that changed since it was indexed, or whose copy to keep is not there any more, is left alone.
param([ValidateSet('move', 'check', 'undo')][string]$Mode = 'move')
$ErrorActionPreference = 'Stop'
$script:Done = 0
$script:Refused = 0

function Refuse($File, $Why) { $script:Refused++; Write-Warning "left alone: ${File}: $Why" }
function There($File) { Test-Path -LiteralPath $File }
# Windows takes "photo." and "photo" for one name, and "nul.jpg" for a device: what is meant is not there then.
function Full($File) {
  $Full = [IO.Path]::GetFullPath($File)
  if ($Full -cne $File.Replace('/', [string][IO.Path]::DirectorySeparatorChar)) { throw "this system reads the name as $Full" }
  $Full
}
function Is($File, $Hash) {
  try {
    if (-not (Test-Path -LiteralPath $File -PathType Leaf)) { return $false }
    if ((Get-Item -LiteralPath $File -Force).Attributes -band [IO.FileAttributes]::ReparsePoint) { return $false }
    return (Get-FileHash -LiteralPath $File -Algorithm SHA256).Hash -eq $Hash
  } catch { return $false }
}
function Put($From, $To) {
  try {
    [IO.Directory]::CreateDirectory([IO.Path]::GetDirectoryName($To)) | Out-Null
    [IO.File]::Move($From, $To)
    $script:Done++
  } catch { Refuse $From "could not be moved to ${To}: $($_.Exception.Message)" }
}
function Each($File, $Hash, $To, $Keep, $KeepHash) {
  try { One (Full $File) $Hash (Full $To) (Full $Keep) $KeepHash } catch { Refuse $File $_.Exception.Message }
}
function One($File, $Hash, $To, $Keep, $KeepHash) {
  if ($Mode -eq 'undo') {
    if (-not (There $To)) { return }
    if (There $File) { Refuse $To "something is at $File" }
    elseif (-not (Is $To $Hash)) { Refuse $To 'changed since it was moved' }
    else { Put $To $File }
    return
  }
  if (-not (There $File)) { if (There $To) { return }; Refuse $File 'is not there' }
  elseif (There $To) { Refuse $File "something is at $To" }
  elseif (-not (Is $File $Hash)) { Refuse $File 'changed since it was indexed' }
  elseif ($File -eq $Keep) { Refuse $File "the copy to keep is the same file: $Keep" }
  elseif (-not (Is $Keep $KeepHash)) { Refuse $File "the copy to keep is gone or changed: $Keep" }
  elseif ($Mode -eq 'check') { Write-Output "would be moved: $File"; $script:Done++ }
  else { Put $File $To }
}
function Finish {
  $words = @{ move = 'moved'; check = 'would be moved'; undo = 'moved back' }[$Mode]
  Write-Output "$script:Done $words, $script:Refused left alone"
  if ($script:Refused) { exit 1 }
}

